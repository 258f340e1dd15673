"""Attention for CPUs: the plain formula, and one whose backward pass recomputes the weights.

Arguments of both: q [B, T, H, D], k and v [B, S, H, D], mask bool, which broadcasts with
[B, H, T, S], or None, and causal, whether a query sees only the keys up to its own position. They
return [B, T, H, D].
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

# q, k, v with heads first, mask, the mixed values [B, T, H, D], log normaliser
Saved = tuple[Array, Array, Array, Array | None, Array, Array]


def plain_attention(q: Array, k: Array, v: Array, mask: Array | None, causal: bool) -> Array:
    """The formula, heads before positions, divided by the normaliser last.

    The softmax is in float32, or wider where the network is.
    """
    q, k, v = _heads_first(q, k, v)
    return jnp.swapaxes(_weighted_values(q, k, v, _visible(q, k, mask, causal))[0], 1, 2)


def recompute(q: Array, k: Array, v: Array, mask: Array | None, causal: bool) -> Array:
    """Like `plain_attention`; its backward pass computes the scores [T, S] again.

    They would be most of what a step keeps, and on a CPU it costs more to write to memory that is
    new to the process than to compute (docs/performance.md).
    """
    q, k, v = _heads_first(q, k, v)
    return _recompute(q, k, v, _visible(q, k, mask, causal))


@jax.custom_vjp
def _recompute(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    return _recompute_forward(q, k, v, mask)[0]


def _recompute_forward(q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Saved]:
    mixed, lse = _weighted_values(q, k, v, mask)
    mixed = jnp.swapaxes(mixed, 1, 2)  # kept only in this order, which the next matmul reads
    return mixed, (q, k, v, mask, mixed, lse)


def _recompute_backward(saved: Saved, g: Array) -> tuple[Array, Array, Array, None]:
    """With p the weights and o what they mix: ds = p (g v - g o), Dao et al. 2022, appendix B.2."""
    q, k, v, mask, mixed, lse = saved
    mixed, g = jnp.swapaxes(mixed, 1, 2), jnp.swapaxes(g, 1, 2)
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    dot = functools.partial(jnp.einsum, preferred_element_type=dtype)
    weights = jnp.exp(_scores(q, k, mask) - lse)
    g_o = (g.astype(dtype) * mixed).sum(axis=-1, keepdims=True)
    d_scores = weights * (dot("bhtd,bhsd->bhts", g, v) - g_o)
    if mask is not None:
        d_scores = jnp.where(mask, d_scores, 0)
    d_scores = d_scores.astype(q.dtype)
    d_q = dot("bhts,bhsd->bhtd", d_scores, k)
    # XLA is slow at a matmul whose first factor it has to transpose, so that is the small one
    d_k = dot("bhdt,bhts->bhds", jnp.swapaxes(q, 2, 3), d_scores)
    d_v = dot("bhdt,bhts->bhds", jnp.swapaxes(g, 2, 3), weights.astype(g.dtype))
    d_k, d_v = jnp.swapaxes(d_k, 2, 3), jnp.swapaxes(d_v, 2, 3)
    return d_q.astype(q.dtype), d_k.astype(k.dtype), d_v.astype(v.dtype), None


_recompute.defvjp(_recompute_forward, _recompute_backward)


def _heads_first(q: Array, k: Array, v: Array) -> list[Array]:
    """[B, T, H, D] -> [B, H, T, D], the queries divided by sqrt D: there are fewer than scores."""
    return [jnp.swapaxes(x, 1, 2) for x in (q * q.shape[-1] ** -0.5, k, v)]


def _visible(q: Array, k: Array, mask: Array | None, causal: bool) -> Array | None:
    """The mask of queries and keys with heads first, [B, H, ., D], causal or given."""
    return jnp.tri(q.shape[2], k.shape[2], dtype=bool)[None, None] if causal else mask


def _scores(q: Array, k: Array, mask: Array | None) -> Array:
    """[B, H, T, S] of divided queries [B, H, T, D] and keys [B, H, S, D]."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=dtype)
    return scores if mask is None else jnp.where(mask, scores, jnp.finfo(dtype).min)


def _weighted_values(q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Array]:
    """(values mixed by the weights [B, H, T, D], log of the weights' normaliser [B, H, T, 1])."""
    scores = _scores(q, k, mask)
    highest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    normaliser = weights.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "bhts,bhsd->bhtd", weights.astype(v.dtype), v, preferred_element_type=scores.dtype
    )
    return (mixed / normaliser).astype(v.dtype), highest + jnp.log(normaliser)
