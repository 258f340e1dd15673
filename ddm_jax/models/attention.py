"""Attention of queries [B, T, H, D] over keys and values [B, S, H, D], softmax(q k / sqrt D) v.

`jax.nn.dot_product_attention` on accelerators. On the CPU its XLA program is slower than the plain
one below: a six-layer network of width 256 on 4 x 256 tokens takes 1.2 times as long with it
(forward, two cores, jax 0.10.2).
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.models.attention_cpu import plain_attention, recompute
from ddm_jax.models.layout_hooks import SINGLE_DEVICE, LayoutHooks
from ddm_jax.models.splash import fits, splash

# every query sees all keys, "causal", or bool[T, S] or bool[B, T, S] whose [q, k] says whether q
# sees k; T is 1 where all queries see the same
Attend = Array | str | None


def attention(
    name: str, q: Array, k: Array, v: Array, attend: Attend, hooks: LayoutHooks = SINGLE_DEVICE
) -> Array:
    """Attention as the program `name` of ATTENTION computes it: [B, T, H, D].

    "splash" is for TPUs. It takes no masks but the causal one, multiples of 128 queries and keys,
    and with "causal" whole sequences; all else it leaves to "auto".
    """
    if name == "splash":
        return _splash(q, k, v, attend, hooks)
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


def mask_keys(attend: Attend, seen: Array | None) -> Attend:
    """The pattern without the keys that are not in seen bool[B, S]; itself where that is None."""
    if seen is None:
        return attend
    return as_mask(attend, seen.shape[1]) & seen[:, None]


def prepend_source(valid: Array, attend: Attend, keys: int) -> Array:
    """The pattern over `keys` keys, which all queries see behind those in valid bool[B, S]."""
    mask = as_mask(attend, keys)
    shape = len(valid), mask.shape[1]
    parts = valid[:, None], mask
    return jnp.concatenate([jnp.broadcast_to(x, (*shape, x.shape[2])) for x in parts], axis=2)


def _splash(q: Array, k: Array, v: Array, attend: Attend, hooks: LayoutHooks) -> Array:
    otherwise = functools.partial(attention, "auto", attend=attend)
    masked = not (attend is None or is_causal(attend))
    split = is_causal(attend) and hooks.positions > 1
    own = q.shape[1] // hooks.positions
    if masked or split or q.shape[1] % hooks.positions or not fits(own, k.shape[1]):
        return otherwise(q, k, v)
    kernel = functools.partial(splash, causal=is_causal(attend))
    return jax.lax.platform_dependent(
        q, k, v, tpu=functools.partial(hooks.per_device_heads, kernel), default=otherwise
    )


def jax_attention(
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


def auto_attention(q: Array, k: Array, v: Array, mask: Array | None, causal: bool) -> Array:
    """By the platform that the program is compiled for."""
    return jax.lax.platform_dependent(
        q,
        k,
        v,
        mask,
        cpu=functools.partial(recompute, causal=causal),
        default=functools.partial(jax_attention, causal=causal),
    )


ATTENTION = {
    "auto": auto_attention,
    "plain": plain_attention,
    "frugal": recompute,
    "xla": functools.partial(jax_attention, implementation="xla"),
    "cudnn": functools.partial(jax_attention, implementation="cudnn"),
}
