"""The uniform (multinomial) process: a token is redrawn from the whole vocabulary.

q(x_t | x_0) = alpha(t) x_0 + (1 - alpha(t)) / V, per token; a redraw may give x_0 again (Hoogeboom
et al. 2021, SEDD, UDLM).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from ddm_jax.diffusion.absorbing import per_position
from ddm_jax.diffusion.categorical import categorical
from ddm_jax.diffusion.randomness import uniforms
from ddm_jax.diffusion.schedules import Schedule


@dataclass(frozen=True)
class Uniform:
    """Redrawing along a schedule, over `vocab_size` tokens."""

    schedule: Schedule
    vocab_size: int

    def corrupt(
        self, keys: jax.Array, x0: jax.Array, t: jax.Array, movable: jax.Array | None = None
    ) -> jax.Array:
        """x_t ~ q(x_t | x_0): key[B], int32[B, L], float[B] or [B, L] -> int32[B, L].

        Positions where `movable` (bool[B, L]) is False keep their token (prompts, padding).
        """
        when, what = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        redrawn = uniforms(when, x0.shape[1:]) < per_position(self.schedule.one_minus_alpha(t))
        redrawn = redrawn if movable is None else redrawn & movable
        return jnp.where(redrawn, self.prior(what, x0.shape[1]), x0)

    def condition(self, t: jax.Array) -> jax.Array:
        """What the network is told of the time: sigma_bar(t), float[...]."""
        return self.schedule.sigma_bar(t)

    def prior(self, keys: jax.Array, length: int) -> jax.Array:
        """x_1: int32[B, length], uniform over the vocabulary; key[B]."""
        draw = jax.vmap(lambda key: jax.random.randint(key, (length,), 0, self.vocab_size))
        return draw(keys)

    def reverse(
        self, keys: jax.Array, xt: jax.Array, logits: jax.Array, s: jax.Array, t: jax.Array
    ) -> jax.Array:
        """x_s ~ q(x_s | x_t, x_0 = p), proportional to q(x_t | x_s) sum_x0 q(x_s | x_0) p(x_0).

        p is what the network says of x_0 from the OTHER positions: then, and only then, this is the
        law of x_s given all of x_t (UDLM eq. 15, D3PM eq. 4).

        Args:
          keys: key[B]. xt: int32[B, L]. logits: float[B, L, V] of p. s, t: float[], s < t; at s = 0
            no noise is left, whatever alpha(0) is.

        Returns:
          int32[B, L].
        """
        clean = jnp.where(s <= 0, 1.0, self.schedule.alpha(s))
        p = jax.nn.softmax(logits, axis=-1)
        of_xs = clean * p + (1 - clean) / self.vocab_size
        stays = self.schedule.alpha(t) / clean  # alpha(t | s)
        is_xt = xt[..., None] == jnp.arange(self.vocab_size)
        to_xt = stays * is_xt + (1 - stays) / self.vocab_size
        return categorical(keys, jnp.log(of_xs) + jnp.log(to_xt))
