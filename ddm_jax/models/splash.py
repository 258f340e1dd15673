"""Splash attention, the flash attention of jax for TPUs (Dao et al. 2022, arXiv:2205.14135).

The scores [T, S] are never written to memory. The kernel is jax's own
(jax.experimental.pallas.ops.tpu.splash_attention). This file calls it on [B, T, H, D], where every
query sees every key, or the keys up to its own position.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import (
    BlockSizes,
    CausalMask,
    FullMask,
    MultiHeadMask,
    make_splash_mha,
)

LANES = 128  # queries and keys come in multiples of this
BLOCK = 512  # of the kernel, at most; the score tile of a block, float32, takes 1 MiB on the chip


def fits(queries: int, keys: int) -> bool:
    """Whether the kernel takes these numbers of queries and keys: multiples of LANES."""
    return queries % LANES == 0 and keys % LANES == 0


def splash(q: Array, k: Array, v: Array, causal: bool, interpret: bool = False) -> Array:
    """softmax(q k / sqrt D) v, with scores and sums in float32.

    Args:
      q: [B, T, H, D], T a multiple of 128.
      k: [B, S, H, D], S a multiple of 128.
      v: [B, S, H, D].
      causal: whether a query sees only the keys up to its own position.
      interpret: runs the kernel on the CPU, slowly.

    Returns:
      [B, T, H, D].
    """
    (_, queries, heads, width), keys = q.shape, k.shape[1]
    mask = (CausalMask if causal else FullMask)((queries, keys))
    kernel = make_splash_mha(
        MultiHeadMask([mask] * heads),
        head_shards=1,
        q_seq_shards=1,
        block_sizes=_blocks(queries, keys),
        interpret=interpret,
    )
    q = q * jnp.asarray(width**-0.5, q.dtype)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    return jnp.swapaxes(jax.vmap(kernel)(q, k, v), 1, 2)


@functools.cache
def _blocks(queries: int, keys: int) -> BlockSizes:
    """One backward kernel for the gradients of q, k and v, which computes the scores once."""
    q, kv = _block(queries), _block(keys)
    return BlockSizes(
        block_q=q,
        block_kv=kv,
        block_q_dkv=q,
        block_kv_dkv=kv,
        use_fused_bwd_kernel=True,
    )


def _block(length: int) -> int:
    """The largest divisor of a length that is a multiple of LANES and at most BLOCK."""
    return max(n for n in range(LANES, BLOCK + 1, LANES) if length % n == 0)
