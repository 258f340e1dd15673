"""The uniform (multinomial) process: a token is redrawn from the whole vocabulary.

q(x_t | x_0) = alpha(t) x_0 + (1 - alpha(t)) / V, per token; a redraw may give x_0 again (Hoogeboom
et al. 2021, SEDD, UDLM).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ddm_jax.diffusion.absorbing import per_position
from ddm_jax.diffusion.categorical import categorical
from ddm_jax.diffusion.randomness import uniforms
from ddm_jax.diffusion.schedules import NoiseSchedule, Schedule


@dataclass(frozen=True)
class UniformProcess:
    """What redrawing processes share, in continuous time (`Uniform`) and in T steps (d3pm.py).

    Attributes:
      schedule: of the noise.
      vocab_size: V, the number of tokens to redraw from.
    """

    schedule: NoiseSchedule
    vocab_size: int

    def corrupt(
        self, keys: jax.Array, x0: jax.Array, t: jax.Array, movable: jax.Array | None = None
    ) -> jax.Array:
        """Draws x_t ~ q(x_t | x_0): key[B], int32[B, L], float[B] or [B, L] -> int32[B, L].

        Positions where `movable` (bool[B, L]) is False keep their token (prompts, padding).
        """
        when, what = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        redrawn = uniforms(when, x0.shape[1:]) < per_position(self.schedule.one_minus_alpha(t))
        redrawn = redrawn if movable is None else redrawn & movable
        return jnp.where(redrawn, self.prior(what, x0.shape[1]), x0)

    def condition(self, t: ArrayLike) -> jax.Array:
        """The network's time input: sigma_bar(t), or in discrete time the step T t: float[...]."""
        return self.schedule.condition(t)

    def prior(self, keys: jax.Array, length: int) -> jax.Array:
        """x_1: int32[B, length], uniform over the vocabulary; key[B]."""
        return uniform_tokens(keys, length, self.vocab_size)

    def reverse_logits(
        self, xt: jax.Array, logits: jax.Array, s: jax.Array, t: jax.Array
    ) -> jax.Array:
        """log q(x_s | x_t, x_0 = p) up to a constant, as `reverse` draws it: float[B, L, V].

        Proportional to q(x_t | x_s) sum_x0 q(x_s | x_0) p(x_0), where p is the network's prediction
        of x_0 from the OTHER positions: then, and only then, this is the law of x_s given all of
        x_t (UDLM eq. 15, D3PM eq. 4).
        """
        p = jax.nn.softmax(logits, axis=-1)
        noise = jnp.where(s <= 0, 0.0, self.schedule.one_minus_alpha(s))
        of_xs = (1 - noise) * p + noise / self.vocab_size
        kept, redrawn = self.between(s, t)
        is_xt = xt[..., None] == jnp.arange(self.vocab_size)
        to_xt = kept * is_xt + redrawn / self.vocab_size
        return jnp.log(of_xs) + jnp.log(to_xt)

    def reverse(
        self, keys: jax.Array, xt: jax.Array, logits: jax.Array, s: jax.Array, t: jax.Array
    ) -> jax.Array:
        """x_s ~ q(x_s | x_t, x_0 = p) of `reverse_logits`.

        Args:
          keys: key[B].
          xt: int32[B, L].
          logits: float[B, L, V] of p.
          s: float[], s < t; at s = 0 no noise is left, whatever alpha(0) is.
          t: float[].

        Returns:
          int32[B, L].
        """
        return categorical(keys, self.reverse_logits(xt, logits, s, t))

    def between(self, s: jax.Array, t: jax.Array) -> tuple[jax.Array, jax.Array]:
        """alpha(t | s) = alpha(t) / alpha(s) and 1 - alpha(t | s), with alpha(0) taken for 1."""
        alpha_s = jnp.where(s <= 0, 1.0, self.schedule.alpha(s))
        drop = jnp.where(s <= 0, self.schedule.one_minus_alpha(t), self.schedule.drop(s, t))
        return self.schedule.alpha(t) / alpha_s, drop / alpha_s


@dataclass(frozen=True)
class Uniform(UniformProcess):
    """Redrawing in continuous time."""

    schedule: Schedule

    def prior_kl(self) -> jax.Array:
        """KL(q(x_1 | x_0) || prior), which no network changes: float[], nats per token."""
        clean = self.schedule.alpha(1.0)
        each = self.schedule.one_minus_alpha(1.0) / self.vocab_size
        return jnp.log1p(-clean) + (clean + each) * jnp.log1p(clean / each)


def uniform_tokens(keys: jax.Array, length: int, vocab_size: int) -> jax.Array:
    """Tokens drawn uniformly from 0 .. vocab_size - 1: key[B] -> int32[B, length]."""

    def draw(key: jax.Array) -> jax.Array:
        return jax.random.randint(key, (length,), 0, vocab_size)

    return jax.vmap(draw)(keys)
