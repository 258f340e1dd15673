"""The hybrid process of GIDD: a token turns into the mask, or is redrawn (von Rütte et al. 2025).

q(x_t | x_0) = [(1 - tau) x_0 + tau m + c u] / (1 + c), per token (arXiv:2503.04482, with gamma =
1). Here u is uniform over the V tokens, c = B sqrt(tau (1 - tau)), B = 2 p_u / (1 - p_u): half way,
at tau = 1/2, the share of redrawn tokens is p_u, and at both ends it is 0. The paper's time tau is
1 - alpha(t) of our schedule, and so alpha(t) here is not the share of clean tokens.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import xlogy
from jax.typing import ArrayLike

from ddm_jax.diffusion.absorbing import per_position
from ddm_jax.diffusion.categorical import categorical
from ddm_jax.diffusion.randomness import uniforms
from ddm_jax.diffusion.schedules import Schedule
from ddm_jax.diffusion.uniform import uniform_tokens

# the published floor: with it every token can become every other, and logarithms stay finite
LEAST_UNIFORM = 2e-9


@dataclass(frozen=True)
class Hybrid:
    """Masking and redrawing along a schedule; `vocab_size` is V, and the id of the mask."""

    schedule: Schedule
    vocab_size: int
    p_uniform: float = 0.2

    @property
    def strength(self) -> float:
        """B, how much is redrawn."""
        p_uniform = max(self.p_uniform, LEAST_UNIFORM)
        return 2 * p_uniform / (1 - p_uniform)

    def levels(self, t: ArrayLike) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(1 - tau, tau, c), the clean, masked and redrawn parts of 1 + c: float[...] each."""
        clean, masked = self.schedule.alpha(t), self.schedule.one_minus_alpha(t)
        return clean, masked, self.strength * jnp.sqrt(clean) * jnp.sqrt(masked)

    def transition(
        self, s: jax.Array | float, t: ArrayLike
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The law of x_t given x_s: the chances to stay, to be masked, to be redrawn; s <= t.

        They sum to 1. At s = 0 nothing is noise yet, whatever alpha(0) is.
        """
        clean_s, masked_s, redrawn_s = self._start(s)
        clean_t, masked_t, redrawn_t = self.levels(t)
        drop = jnp.where(s <= 0, masked_t, self.schedule.drop(s, t))
        kept = clean_t / clean_s
        # c_t - kept c_s without the difference
        roots = jnp.sqrt(masked_t * clean_s) + jnp.sqrt(clean_t * masked_s)
        redrawn = self.strength * jnp.sqrt(kept) * drop / roots
        total = 1 + redrawn_t
        return kept * (1 + redrawn_s) / total, drop / clean_s / total, redrawn / total

    def corrupt(
        self, keys: jax.Array, x0: jax.Array, t: jax.Array, movable: jax.Array | None = None
    ) -> jax.Array:
        """Draws x_t ~ q(x_t | x_0): key[B], int32[B, L], float[B] or [B, L] -> int32[B, L].

        Positions where `movable` (bool[B, L]) is False keep their token (prompts, padding).
        """
        clean, masked, redrawn = (per_position(x) for x in self.levels(t))
        xt = self._noised(keys, x0, masked / (1 + redrawn), redrawn / (clean + redrawn))
        return xt if movable is None else jnp.where(movable, xt, x0)

    def condition(self, t: ArrayLike) -> jax.Array:
        """The network's time input: sigma_bar(t), float[...]."""
        return self.schedule.condition(t)

    def prior(self, keys: jax.Array, length: int) -> jax.Array:
        """x_1: int32[B, length], masked as often as q(x_1 | x_0), else uniform; key[B].

        With alpha(1) = 1e-3 and p_uniform = 0.2 that leaves 1.7 % tokens, with alpha(1) = 0 none.
        """
        _, masked, redrawn = self.levels(jnp.float32(1))
        nothing = jnp.zeros((*keys.shape, length), jnp.int32)
        return self._noised(keys, nothing, masked / (1 + redrawn), jnp.ones_like(masked))

    def prior_kl(self) -> jax.Array:
        """KL(q(x_1 | x_0) || prior), which no network changes: float[], nats per token."""
        clean, _, redrawn = self.levels(1.0)
        each = redrawn / self.vocab_size
        tokens = jnp.maximum(clean + redrawn, np.finfo(each.dtype).tiny)  # 0 if all are masks
        at_x0 = xlogy(clean + each, (clean + each) / tokens * self.vocab_size)
        return (at_x0 + xlogy(redrawn - each, redrawn / tokens)) / (1 + redrawn)

    def reverse_logits(
        self, xt: jax.Array, logits: jax.Array, s: jax.Array, t: jax.Array
    ) -> jax.Array:
        """log q(x_s | x_t, x_0 = p) up to a constant, the mask last: float[B, L, V + 1].

        As Uniform.reverse_logits: p is the network's prediction from the other positions.
        """
        clean, masked, redrawn = self._start(s)
        p = jax.nn.softmax(logits, axis=-1)
        of_xs = clean * p + redrawn / self.vocab_size
        of_xs = jnp.concatenate([of_xs, jnp.broadcast_to(masked, xt.shape)[..., None]], axis=-1)
        stay, mask, redraw = self.transition(s, t)
        is_xt = xt[..., None] == jnp.arange(self.vocab_size + 1)
        moved = jnp.where(xt == self.vocab_size, mask, redraw / self.vocab_size)
        return jnp.log(of_xs) + jnp.log(stay * is_xt + moved[..., None])

    def reverse(
        self, keys: jax.Array, xt: jax.Array, logits: jax.Array, s: jax.Array, t: jax.Array
    ) -> jax.Array:
        """Draws x_s ~ q(x_s | x_t, x_0 = p); no mask is left at s = 0.

        Args:
          keys: key[B].
          xt: int32[B, L].
          logits: float[B, L, V] of p.
          s: float[], s < t.
          t: float[].

        Returns:
          int32[B, L].
        """
        return categorical(keys, self.reverse_logits(xt, logits, s, t))

    def _start(self, s: jax.Array | float) -> tuple[jax.Array, ...]:
        """`levels`, but without noise at s = 0."""
        nothing = (1.0, 0.0, 0.0)
        return tuple(jnp.where(s <= 0, *x) for x in zip(nothing, self.levels(s), strict=True))

    def _noised(
        self, keys: jax.Array, x: jax.Array, masked: jax.Array, redrawn: jax.Array
    ) -> jax.Array:
        """Each token masked with one probability, if not then redrawn with another: key[B]."""
        when, whether, what = jnp.moveaxis(
            jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0
        )
        redraw = uniforms(whether, x.shape[1:]) < redrawn
        token = jnp.where(redraw, uniform_tokens(what, x.shape[1], self.vocab_size), x)
        return jnp.where(uniforms(when, x.shape[1:]) < masked, self.vocab_size, token)
