"""Masking with a schedule for each token: GenMD4 (Shi et al. 2024, arXiv:2406.04329, section 6).

alpha_v(t) = 1 - (1 - eps) t^{w_v} for token v: a token of large w is masked late, and so revealed
early. The w are learned; the parameters hold softplus^{-1}(w).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ddm_jax.diffusion.absorbing import Absorbing, mask_independently, per_position
from ddm_jax.diffusion.categorical import categorical
from ddm_jax.diffusion.randomness import uniforms

EPS = 1e-4  # alpha_v(1), as in the published code: alpha(1) = 0 has no logarithm


@dataclass(frozen=True)
class VectorAbsorbing:
    """Masking along t^w.

    Attributes:
      base: the process that gives the network its time input, and the prior.
      w: float[V], the powers.
    """

    base: Absorbing
    w: jax.Array

    @property
    def mask_id(self) -> int:
        """V, as for every absorbing process."""
        return self.base.mask_id

    def corrupt(
        self, keys: jax.Array, x0: jax.Array, t: jax.Array, movable: jax.Array | None = None
    ) -> jax.Array:
        """Draws x_t ~ q(x_t | x_0): key[B], int32[B, L], float[B] or [B, L] -> int32[B, L]."""
        probability = jnp.exp(self.log_masked(x0, t))
        return mask_independently(keys, x0, probability, self.mask_id, movable=movable)

    def log_masked(self, x0: jax.Array, t: jax.Array) -> jax.Array:
        """log(1 - alpha_{x0}(t)): int32[B, L], float[B] or [B, L] -> float[B, L]."""
        return jnp.log1p(-EPS) + self.w[x0] * jnp.log(per_position(t))

    def log_clean(self, x0: jax.Array, t: jax.Array) -> jax.Array:
        """log alpha_{x0}(t): int32[B, L], float[B] or [B, L] -> float[B, L]."""
        log_power = self.w[x0] * jnp.log(per_position(t))
        return jnp.log(EPS * jnp.exp(log_power) - jnp.expm1(log_power))

    def condition(self, t: ArrayLike) -> jax.Array:
        """The network's time input, float[...]."""
        return self.base.condition(t)

    def prior(self, keys: jax.Array, length: int) -> jax.Array:
        """x_1: int32[B, length], masks only; keys [B]."""
        return self.base.prior(keys, length)

    def reverse(
        self, keys: jax.Array, xt: jax.Array, logits: jax.Array, s: jax.Array, t: jax.Array
    ) -> jax.Array:
        """x_s: a mask turns into v with probability p_v (alpha_v(s) - alpha_v(t))/(1 - alpha_v(t)).

        Args:
          keys: key[B].
          xt: int32[B, L].
          logits: float[B, L, V] of p.
          s: float[], s < t; at s = 0 all is revealed.
          t: float[].

        Returns:
          int32[B, L].
        """
        when, what = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        log_reveal = jnp.log(-jnp.expm1(self.w * jnp.log(s / t)))
        log_p = jax.nn.log_softmax(logits, axis=-1) + log_reveal
        chance = jnp.exp(jax.nn.logsumexp(log_p, axis=-1))
        # one at s = 0, whatever the rounding of a sum of V probabilities
        reveal = (xt == self.mask_id) & ((s <= 0) | (uniforms(when, xt.shape[1:]) < chance))
        return jnp.where(reveal, categorical(what, log_p), xt)


def with_learned_powers(process: Absorbing, learned: Mapping[str, jax.Array]) -> VectorAbsorbing:
    """The process whose w an objective has learned, {"raw_power": float[V]}."""
    return VectorAbsorbing(process, jax.nn.softplus(learned["raw_power"]))


def equal_powers(process: Absorbing, power: float) -> dict[str, jax.Array]:
    """{"raw_power": float32[V]} with every w = power > 0."""
    raw = power + jnp.log(-jnp.expm1(-power))  # softplus^{-1}
    return {"raw_power": jnp.full(process.mask_id, raw, jnp.float32)}
