"""Attention of queries [B, T, H, D] over keys and values [B, S, H, D], softmax(q k / sqrt D) v.

`jax.nn.dot_product_attention` on accelerators. On the CPU its XLA program is slower than the plain
one below: a six-layer network of width 256 on 4 x 256 tokens takes 1.2 times as long with it
(forward, two cores, jax 0.10.2).
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array


def library(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    causal: bool,
    implementation: str | None = None,
) -> Array:
    """jax's own; mask bool, broadcasting with [B, H, T, S], or None."""
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal, implementation=implementation
    )


def plain(q: Array, k: Array, v: Array, mask: Array | None, causal: bool) -> Array:
    """The formula, heads before positions, divided by the normaliser last.

    The softmax is in float32, or wider where the network is.
    """
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=dtype)
    scores = scores * q.shape[-1] ** -0.5
    if causal:
        mask = jnp.tri(q.shape[2], k.shape[2], dtype=bool)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(dtype).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    mixed = jnp.einsum("bhts,bhsd->bhtd", weights.astype(v.dtype), v, preferred_element_type=dtype)
    mixed = mixed / weights.sum(axis=-1, keepdims=True)
    return jnp.swapaxes(mixed.astype(v.dtype), 1, 2)


def fastest(q: Array, k: Array, v: Array, mask: Array | None, causal: bool) -> Array:
    """By the platform that the program is compiled for."""
    return jax.lax.platform_dependent(
        q,
        k,
        v,
        mask,
        cpu=functools.partial(plain, causal=causal),
        default=functools.partial(library, causal=causal),
    )


ATTENTION = {
    "auto": fastest,
    "plain": plain,
    "xla": functools.partial(library, implementation="xla"),
    "cudnn": functools.partial(library, implementation="cudnn"),
}
