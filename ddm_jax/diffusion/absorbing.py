"""The absorbing process: a token turns into the mask and stays masked (RADD, MDLM, MD4).

q(x_t | x_0) = alpha(t) x_0 + (1 - alpha(t)) m, per token. Each masking rule comes twice: from keys,
and as the deterministic rule under it, which takes the uniforms or the ranks.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ddm_jax.diffusion.categorical import categorical
from ddm_jax.diffusion.randomness import uniforms
from ddm_jax.diffusion.schedules import NoiseSchedule, Schedule


@dataclass(frozen=True)
class MaskingProcess:
    """What masking processes share, in continuous time (`Absorbing`) and in T steps (d3pm.py).

    s <= t are times of any shapes that broadcast.

    Attributes:
      schedule: of the noise.
      mask_id: the id of the mask, which is V, the number of tokens.
    """

    schedule: NoiseSchedule
    mask_id: int

    def corrupt(
        self, keys: jax.Array, x0: jax.Array, t: jax.Array, movable: jax.Array | None = None
    ) -> jax.Array:
        """Draws x_t ~ q(x_t | x_0): key[B], int32[B, L], float[B] or [B, L] -> int32[B, L].

        Positions where `movable` (bool[B, L]) is False keep their token (prompts, padding).
        """
        return mask_independently(
            keys, x0, self.schedule.one_minus_alpha(t), self.mask_id, movable=movable
        )

    def stay_masked(self, s: ArrayLike, t: ArrayLike) -> jax.Array:
        """q(x_s = m | x_t = m) = (1 - alpha_s) / (1 - alpha_t)."""
        return self.schedule.one_minus_alpha(s) / self.schedule.one_minus_alpha(t)

    def reveal(self, s: ArrayLike, t: ArrayLike) -> jax.Array:
        """q(x_s = x_0 | x_t = m, x_0) = (alpha_s - alpha_t) / (1 - alpha_t)."""
        return self.schedule.drop(s, t) / self.schedule.one_minus_alpha(t)

    def condition(self, t: ArrayLike) -> jax.Array:
        """The network's time input: sigma_bar(t), or in discrete time the step T t: float[...]."""
        return self.schedule.condition(t)

    def prior(self, keys: jax.Array, length: int) -> jax.Array:
        """x_1: int32[B, length], masks only; keys [B]."""
        return jnp.full((*keys.shape, length), self.mask_id, jnp.int32)

    def reverse(
        self, keys: jax.Array, xt: jax.Array, logits: jax.Array, s: jax.Array, t: jax.Array
    ) -> jax.Array:
        """Draws x_s ~ sum_x0 q(x_s | x_t, x0) p(x0 | x_t): a mask is revealed or stays a mask.

        Args:
          keys: key[B].
          xt: int32[B, L].
          logits: float[B, L, V] of p.
          s: float[], s < t; at s = 0 all is revealed, also where the schedule leaves
            1 - alpha(0) > 0.
          t: float[].

        Returns:
          int32[B, L].
        """
        when, what = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        chance = jnp.where(s <= 0, 1.0, self.reveal(s, t))
        reveal = (xt == self.mask_id) & (uniforms(when, xt.shape[1:]) < chance)
        return jnp.where(reveal, categorical(what, logits), xt)


@dataclass(frozen=True)
class Absorbing(MaskingProcess):
    """Masking in continuous time."""

    schedule: Schedule


def mask_independently(
    keys: jax.Array,
    x0: jax.Array,
    probability: jax.Array,
    mask_id: int,
    movable: jax.Array | None = None,
) -> jax.Array:
    """Mask each movable position with its probability: key[B], int32[B, L], float[B] or [B, L]."""
    u = uniforms(keys, x0.shape[1:])
    return mask_below(u, x0, probability, mask_id, movable=movable)


def mask_below(
    u: jax.Array,
    x0: jax.Array,
    probability: jax.Array,
    mask_id: int,
    movable: jax.Array | None = None,
) -> jax.Array:
    """Mask where u < probability and movable: float[B, L], int32[B, L] -> int32[B, L].

    probability: float[B], one for each example, or float[B, L].
    """
    return _masked(u < per_position(probability), x0, mask_id, movable)


def mask_exactly(
    keys: jax.Array,
    x0: jax.Array,
    k: jax.Array,
    mask_id: int,
    movable: jax.Array | None = None,
) -> jax.Array:
    """Mask k movable positions per example, all k-subsets alike: key[B], int32[B, L], int32[B].

    Exactly k are masked; all movable ones where there are fewer than k.
    """
    return mask_first(random_ranks(keys, x0.shape[1], movable), x0, k, mask_id, movable=movable)


def mask_first(
    ranks: jax.Array,
    x0: jax.Array,
    k: jax.Array,
    mask_id: int,
    movable: jax.Array | None = None,
) -> jax.Array:
    """Mask where rank < k and movable: int32[B, L], int32[B, L], int32[B] -> int32[B, L]."""
    return _masked(ranks < k[:, None], x0, mask_id, movable)


def random_ranks(keys: jax.Array, length: int, movable: jax.Array | None = None) -> jax.Array:
    """A random order of the positions, the movable ones first: key[B], bool[B, L] -> int32[B, L].

    Each row is a permutation of 0..L-1, uniform among those that rank movable positions before the
    others.
    """
    fixed = jnp.zeros((*keys.shape, length), bool) if movable is None else ~movable

    def rank(key: jax.Array, fixed: jax.Array) -> jax.Array:
        # 64 random bits each: 32 tie once in some thousand sequences, and ties favour the left
        high, low = jax.random.bits(key, (2, length), jnp.uint32)
        positions = jnp.arange(length, dtype=jnp.int32)
        *_, order = jax.lax.sort((fixed, high, low, positions), num_keys=3)
        return jnp.zeros_like(order).at[order].set(positions, unique_indices=True)

    return jax.vmap(rank)(keys, fixed)


def _masked(chosen: jax.Array, x0: jax.Array, mask_id: int, movable: jax.Array | None) -> jax.Array:
    return jnp.where(chosen if movable is None else chosen & movable, mask_id, x0)


def per_position(x: jax.Array) -> jax.Array:
    """float[B] -> float[B, 1], to broadcast with arrays [B, L]; float[B, L] unchanged."""
    return x if x.ndim == 2 else x[:, None]
