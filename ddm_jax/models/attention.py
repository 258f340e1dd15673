"""Attention of queries [B, T, H, D] over keys and values [B, S, H, D], softmax(q k / sqrt D) v.

Accelerators use `jax.nn.dot_product_attention`. On the CPU its XLA program is slower than ours in
attention_cpu.py: a six-layer network of width 256 on 4 x 256 tokens takes 1.2 times as long with it
(forward, two cores, jax 0.10.2).
"""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.models.attention_cpu import plain_attention, recompute
from ddm_jax.models.layout_hooks import SINGLE_DEVICE, LayoutHooks
from ddm_jax.models.splash import fits, splash

# which keys a query sees: all (None), those up to its own position ("causal"), or bool[T, S] or
# bool[B, T, S] whose [q, k] says whether q sees k; T is 1 where all queries see the same keys
Attend = Array | Literal["causal"] | None


def attention(
    name: str, q: Array, k: Array, v: Array, attend: Attend, hooks: LayoutHooks = SINGLE_DEVICE
) -> Array:
    """Attention by the implementation `name`.

    "splash" is for TPUs. It takes no masks but the causal one, multiples of 128 queries and keys,
    and with "causal" whole sequences; in all other cases "auto" is used.

    Args:
      name: "splash" or a row of ATTENTION; config.model.attention.
      q: [B, T, H, D].
      k: [B, S, H, D].
      v: [B, S, H, D].
      attend: which keys a query sees.
      hooks: of the layout.

    Returns:
      [B, T, H, D].
    """
    if name == "splash":
        return _splash(q, k, v, attend, hooks)
    if attend is None or isinstance(attend, str):
        return ATTENTION[name](q, k, v, None, is_causal(attend))
    return ATTENTION[name](q, k, v, as_mask(attend, k.shape[1])[:, None], False)


def is_causal(attend: Attend) -> bool:
    """Whether a query sees the keys up to its own position."""
    return isinstance(attend, str) and attend == "causal"


def as_mask(attend: Attend, keys: int) -> Array:
    """`attend` over S = `keys` keys as bool[B or 1, T or 1, S]."""
    if attend is None:
        return jnp.ones((1, 1, keys), bool)
    if isinstance(attend, str):
        return jnp.tri(keys, dtype=bool)[None]
    return attend if attend.ndim == 3 else attend[None]


def mask_keys(attend: Attend, seen: Array | None) -> Attend:
    """`attend`, restricted to the keys in seen bool[B, S]; unchanged if that is None."""
    if seen is None:
        return attend
    return as_mask(attend, seen.shape[1]) & seen[:, None]


def prepend_source(valid: Array, attend: Attend, keys: int) -> Array:
    """`attend` over `keys` keys, preceded by the keys of a source, which every query sees.

    Args:
      valid: bool[B, S], the source's real tokens; only these are seen.
      attend: which of the other keys a query sees.
      keys: their number M.

    Returns:
      bool[B, T or 1, S + M].
    """
    mask = as_mask(attend, keys)
    shape = len(valid), mask.shape[1]
    parts = valid[:, None], mask
    return jnp.concatenate([jnp.broadcast_to(x, (*shape, x.shape[2])) for x in parts], axis=2)


def select_queries(attend: Attend, read: Array) -> Array | None:
    """`attend`, not "causal", for the queries in read int32[B, K]: bool[B, K, S]."""
    if attend is None:
        return None
    assert not isinstance(attend, str), "some queries of a causal pass"
    return select_positions(attend, read) if attend.ndim == 3 else attend.at[read].get(mode="clip")


def select_positions(x: Array, read: Array | None) -> Array:
    """The tokens in read int32[B, K] of x [B, L, ...]; all where it is None."""
    if read is None:
        return x
    return jax.vmap(lambda x, at: x.at[at].get(mode="clip"))(x, read)


def _splash(q: Array, k: Array, v: Array, attend: Attend, hooks: LayoutHooks) -> Array:
    causal = is_causal(attend)
    otherwise = functools.partial(attention, "auto", attend=attend)
    masked = not (attend is None or causal)
    split = causal and hooks.position_parts > 1
    own = q.shape[1] // hooks.position_parts
    if masked or split or q.shape[1] % hooks.position_parts or not fits(own, k.shape[1]):
        return otherwise(q, k, v)
    kernel = functools.partial(splash, causal=causal)
    return jax.lax.platform_dependent(
        q, k, v, tpu=functools.partial(hooks.per_device_heads, kernel), default=otherwise
    )


def jax_attention(
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None,
    causal: bool,
    implementation: Literal["xla", "cudnn"] | None = None,
) -> Array:
    """`jax.nn.dot_product_attention`.

    Args:
      q: [B, T, H, D].
      k: [B, S, H, D].
      v: [B, S, H, D].
      mask: bool, which broadcasts with [B, H, T, S]; None if every query sees all keys.
      causal: whether a query sees only the keys up to its own position.
      implementation: None lets jax choose.

    Returns:
      [B, T, H, D].
    """
    if mask is not None:  # cuDNN needs both of these axes
        mask = jnp.broadcast_to(mask, (*mask.shape[:2], q.shape[1], k.shape[1]))
    return jax.nn.dot_product_attention(
        q, k, v, mask=mask, is_causal=causal, implementation=implementation
    )


def auto_attention(q: Array, k: Array, v: Array, mask: Array | None, causal: bool) -> Array:
    """`recompute` in a program for CPUs, `jax_attention` elsewhere; arguments as in the latter."""
    return jax.lax.platform_dependent(
        q,
        k,
        v,
        mask,
        cpu=functools.partial(recompute, causal=causal),
        default=functools.partial(jax_attention, causal=causal),
    )


# config.model.attention -> function(q, k, v, mask, causal)
ATTENTION: dict[str, Callable[[Array, Array, Array, Array | None, bool], Array]] = {
    "auto": auto_attention,
    "plain": plain_attention,
    "frugal": recompute,
    "xla": functools.partial(jax_attention, implementation="xla"),
    "cudnn": functools.partial(jax_attention, implementation="cudnn"),
}
