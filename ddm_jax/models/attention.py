"""Attention of queries [B, T, H, D] over keys and values [B, S, H, D], softmax(q k / sqrt D) v.

`jax.nn.dot_product_attention` on accelerators. On the CPU its XLA program is slower than the plain
one below: a six-layer network of width 256 on 4 x 256 tokens takes 1.2 times as long with it
(forward, two cores, jax 0.10.2).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.models.layout_hooks import ALONE, Spread
from ddm_jax.models.splash import fits, splash

# every query sees all keys, "causal", or bool[T, S] or bool[B, T, S] whose [q, k] says whether q
# sees k; T is 1 where all queries see the same
Attend = Array | str | None


def attention(
    name: str, q: Array, k: Array, v: Array, attend: Attend, spread: Spread = ALONE
) -> Array:
    """Attention as the program `name` of ATTENTION computes it: [B, T, H, D].

    "splash" is for TPUs. It takes no masks but the causal one, multiples of 128 queries and keys,
    and with "causal" whole sequences; all else it leaves to "auto".
    """
    if name == "splash":
        return _splash(q, k, v, attend, spread)
    mask = None if attend is None or is_causal(attend) else as_mask(attend, k.shape[1])[:, None]
    return ATTENTION[name](q, k, v, mask, is_causal(attend))


def is_causal(attend: Attend) -> bool:
    """Whether a query sees the keys up to its own position."""
    return isinstance(attend, str) and attend == "causal"


def as_mask(attend: Attend, keys: int) -> Array:
    """A pattern over S keys as bool[B or 1, T or 1, S]."""
    if attend is None:
        return jnp.ones((1, 1, keys), bool)
    if is_causal(attend):
        return jnp.tri(keys, dtype=bool)[None]
    return attend if attend.ndim == 3 else attend[None]


def among(attend: Attend, seen: Array | None) -> Attend:
    """The pattern without the keys that are not in seen bool[B, S]; itself where that is None."""
    if seen is None:
        return attend
    return as_mask(attend, seen.shape[1]) & seen[:, None]


def behind(valid: Array, attend: Attend, keys: int) -> Array:
    """The pattern over `keys` keys, which all queries see behind those in valid bool[B, S]."""
    mask = as_mask(attend, keys)
    shape = len(valid), mask.shape[1]
    parts = valid[:, None], mask
    return jnp.concatenate([jnp.broadcast_to(x, (*shape, x.shape[2])) for x in parts], axis=2)


def _splash(q: Array, k: Array, v: Array, attend: Attend, spread: Spread) -> Array:
    otherwise = functools.partial(attention, "auto", attend=attend)
    masked = not (attend is None or is_causal(attend))
    split = is_causal(attend) and spread.positions > 1
    own = q.shape[1] // spread.positions
    if masked or split or q.shape[1] % spread.positions or not fits(own, k.shape[1]):
        return otherwise(q, k, v)
    kernel = functools.partial(splash, causal=is_causal(attend))
    return jax.lax.platform_dependent(
        q, k, v, tpu=functools.partial(spread.locally, kernel), default=otherwise
    )


def library(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    causal: bool,
    implementation: str | None = None,
) -> Array:
    """jax's own; mask bool, broadcasting with [B, H, T, S], or None."""
    if mask is not None:  # cuDNN wants both of these axes
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], q.shape[1], k.shape[1]))
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal, implementation=implementation
    )


def plain(q: Array, k: Array, v: Array, mask: Array | None, causal: bool) -> Array:
    """The formula, heads before positions, divided by the normaliser last.

    The softmax is in float32, or wider where the network is.
    """
    q, k, v = _heads_first(q, k, v)
    return jnp.swapaxes(_mixed(q, k, v, _shown(q, k, mask, causal))[0], 1, 2)


def frugal(q: Array, k: Array, v: Array, mask: Array | None, causal: bool) -> Array:
    """The same, whose backward pass computes the scores [T, S] again: for CPUs.

    They would be most of what a step keeps, and there it costs more to write to memory that is new
    to the process than to compute (docs/performance.md).
    """
    q, k, v = _heads_first(q, k, v)
    return _frugal(q, k, v, _shown(q, k, mask, causal))


@jax.custom_vjp
def _frugal(q: Array, k: Array, v: Array, mask: Array | None) -> Array:
    return _frugal_forward(q, k, v, mask)[0]


def _frugal_forward(q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Any]:
    mixed, lse = _mixed(q, k, v, mask)
    mixed = jnp.swapaxes(mixed, 1, 2)  # kept in this order alone, which the next matmul reads
    return mixed, (q, k, v, mask, mixed, lse)


def _frugal_backward(saved: Any, g: Array) -> tuple[Array, Array, Array, None]:
    """With p the weights and o what they mix: ds = p (g v - g o), Dao et al. 2022, appendix B.2."""
    q, k, v, mask, mixed, lse = saved
    mixed, g = jnp.swapaxes(mixed, 1, 2), jnp.swapaxes(g, 1, 2)
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    dot = functools.partial(jnp.einsum, preferred_element_type=dtype)
    weights = jnp.exp(_scores(q, k, mask) - lse)
    own = (g.astype(dtype) * mixed).sum(axis=-1, keepdims=True)
    of_scores = weights * (dot("bhtd,bhsd->bhts", g, v) - own)
    if mask is not None:
        of_scores = jnp.where(mask, of_scores, 0)
    of_scores = of_scores.astype(q.dtype)
    of_q = dot("bhts,bhsd->bhtd", of_scores, k)
    # XLA is slow at a matmul whose first factor it has to transpose: that is to be the small one
    of_k = dot("bhdt,bhts->bhds", jnp.swapaxes(q, 2, 3), of_scores)
    of_v = dot("bhdt,bhts->bhds", jnp.swapaxes(g, 2, 3), weights.astype(g.dtype))
    of_k, of_v = jnp.swapaxes(of_k, 2, 3), jnp.swapaxes(of_v, 2, 3)
    return of_q.astype(q.dtype), of_k.astype(k.dtype), of_v.astype(v.dtype), None


_frugal.defvjp(_frugal_forward, _frugal_backward)


def _heads_first(q: Array, k: Array, v: Array) -> list[Array]:
    """[B, T, H, D] -> [B, H, T, D], the queries divided by sqrt D: there are fewer than scores."""
    return [jnp.swapaxes(x, 1, 2) for x in (q * q.shape[-1] ** -0.5, k, v)]


def _shown(q: Array, k: Array, mask: Array | None, causal: bool) -> Array | None:
    return jnp.tri(q.shape[2], k.shape[2], dtype=bool)[None, None] if causal else mask


def _scores(q: Array, k: Array, mask: Array | None) -> Array:
    """[B, H, T, S] of divided queries [B, H, T, D] and keys [B, H, S, D]."""
    dtype = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=dtype)
    return scores if mask is None else jnp.where(mask, scores, jnp.finfo(dtype).min)


def _mixed(q: Array, k: Array, v: Array, mask: Array | None) -> tuple[Array, Array]:
    """(what the weights mix [B, H, T, D], logarithm of their normaliser [B, H, T, 1])."""
    scores = _scores(q, k, mask)
    highest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
    weights = jnp.exp(scores - highest)
    total = weights.sum(axis=-1, keepdims=True)
    mixed = jnp.einsum(
        "bhts,bhsd->bhtd", weights.astype(v.dtype), v, preferred_element_type=scores.dtype
    )
    return (mixed / total).astype(v.dtype), highest + jnp.log(total)


def fastest(q: Array, k: Array, v: Array, mask: Array | None, causal: bool) -> Array:
    """By the platform that the program is compiled for."""
    return jax.lax.platform_dependent(
        q,
        k,
        v,
        mask,
        cpu=functools.partial(frugal, causal=causal),
        default=functools.partial(library, causal=causal),
    )


ATTENTION = {
    "auto": fastest,
    "plain": plain,
    "frugal": frugal,
    "xla": functools.partial(library, implementation="xla"),
    "cudnn": functools.partial(library, implementation="cudnn"),
}
