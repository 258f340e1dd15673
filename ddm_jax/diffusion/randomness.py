"""Random numbers that belong to the example, not to the device.

The corruption of example i at step s depends only on (seed, s, i), with i its index in the GLOBAL
batch: any split of the batch over devices, processes or micro-batches draws the same numbers, bit
for bit. Keys are typed threefry keys: other generators do not promise the same bits under vmap.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

# not the index of an example: what the whole batch shares is drawn from fold_in(step_key, _SHARED)
_SHARED = 2**32 - 1

_LAST_BEFORE_ONE = 1 - 2.0**-24


def step_key(seed: ArrayLike, step: ArrayLike) -> jax.Array:
    """The key of training step `step`: key[]; seed and step are integers, traced ones too."""
    return jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), step)


def example_keys(step_key: jax.Array, index: ArrayLike) -> jax.Array:
    """The keys of the examples with these indices in the global batch: int32[b] >= 0 -> key[b]."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, jnp.asarray(index))


def uniforms(keys: jax.Array, shape: Sequence[int] = ()) -> jax.Array:
    """Uniforms strictly inside (0, 1): keys[...] -> float32[..., *shape], one stream per key.

    All 32 random bits count, so P(u < p) is right to 2^-33 where p is small; jax.random.uniform
    stops at 2^-23, which is coarser than the chance of a single masked token early in the process.
    """

    def draw(key: jax.Array) -> jax.Array:
        return _unit_interval(jax.random.bits(key, tuple(shape), jnp.uint32))

    for _ in range(keys.ndim):
        draw = jax.vmap(draw)
    return draw(keys)


def antithetic(step_key: jax.Array, index: ArrayLike, batch_size: int) -> jax.Array:
    """Pairs (u, 1 - u): examples 2j and 2j + 1 share u_j: int32[b] -> float32[b] in (0, 1)."""
    del batch_size
    index = jnp.asarray(index)
    u = uniforms(example_keys(jax.random.fold_in(step_key, _SHARED), index // 2))
    return jnp.clip(jnp.where(index % 2, 1 - u, u), 2.0**-33, _LAST_BEFORE_ONE)


def independent(step_key: jax.Array, index: ArrayLike, batch_size: int) -> jax.Array:
    """Independent uniforms, one for each example: int32[b] -> float32[b] in (0, 1)."""
    del batch_size
    return uniforms(example_keys(jax.random.fold_in(step_key, _SHARED), index))


def stratified(step_key: jax.Array, index: ArrayLike, batch_size: int) -> jax.Array:
    """Times t_i = (u + i/B) mod 1 with one u for the whole batch: int32[b] -> float32[b] in (0, 1).

    index: positions in the global batch of B = batch_size examples (VDM, appendix I.1; RADD).
    """
    return stratify(uniforms(jax.random.fold_in(step_key, _SHARED)), index, batch_size)


def stratify(u: ArrayLike, index: ArrayLike, batch_size: int) -> jax.Array:
    """(u + i/B) mod 1, with u shared or one for each: float32[] or [b] -> float32[b] in (0, 1).

    u is in [0, 1), and batch_size at most 2^24. Neither 0, where loss weights diverge, nor 1 comes
    out.
    """
    # in 32-bit fixed point, where mod 1 is the overflow: compiled float division rounds in more
    # than one way, and would make a time depend on the program around it
    fraction = _fixed_point_ratio(jnp.asarray(index, jnp.uint32), batch_size)
    return _unit_interval(jnp.asarray(u * 2.0**32, jnp.uint32) + fraction)


TIMES = {"stratified": stratified, "antithetic": antithetic, "independent": independent}


def _fixed_point_ratio(i: jax.Array, n: int) -> jax.Array:
    """floor(2^32 i / n) for i < n <= 2^24, by long division in base 256: uint32[...]."""
    quotient, rest = jnp.zeros_like(i), i
    for _ in range(4):
        rest = rest * 256
        quotient, rest = quotient * 256 + rest // n, rest % n
    return quotient


def _unit_interval(bits: jax.Array) -> jax.Array:
    """(bits + 1/2) / 2^32 rounded to float32, but never to 1: uint32[...] -> float32[...]."""
    return jnp.minimum(bits.astype(jnp.float32) * 2.0**-32 + 2.0**-33, _LAST_BEFORE_ONE)
