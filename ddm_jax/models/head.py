"""Losses of logits where there is a loss, and their gradients, of which few are held at once.

Positions with a loss are sorted to the front and read in chunks, as many as there are. A chunk's
gradients are formed with its logits, which are gone before the next: three matmuls for each
position with a loss and none for the others, where automatic differentiation would keep all logits
or compute them twice (the fused linear cross entropy of Liger, Hsu et al. 2024, arXiv:2410.10989).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from ddm_jax.models.layout_hooks import LayoutHooks

CHUNKS = 16  # of a device's positions, at least; half a chunk is computed for nothing
ROWS = 128  # of a chunk, at least: fewer leave matmuls waiting for the kernel
LOGIT_BYTES = 2**28  # of float32 logits that a device holds at once, at most

Reduce = Callable[..., Array]
Rows = tuple[Array, Array, tuple[Array, ...]]  # hidden [B, L, D], weight [B, L], given [B, L, ...]
Kernel = tuple[Array, Array]  # [D, V_pad], [V_pad]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def weighted_losses(
    reduce: Reduce,
    vocab_size: int,
    gradient_dtype: DTypeLike,
    hooks: LayoutHooks,
    rows: Rows,
    head: Kernel,
) -> Array:
    """weight * reduce(logits, *given) at each position, 0 where the weight is: float32[B, L].

    Args:
      reduce: (float32[N, V], *given [N, ...]) -> float32[N], position by position; it closes over
        no array. It is not asked about positions whose weight is 0.
      vocab_size: V; the logits of padding beyond it are no one's.
      gradient_dtype: in which the gradients of devices are added up.
      spread: of rows over devices.
      rows: the final hidden states, the weight of each loss, and what else `reduce` is given.
        Only the hidden states have gradients.
      head: kernel and bias.
    """
    del gradient_dtype

    def local(rows: Rows, own: None, head: Kernel) -> tuple[Array, None]:
        return _in_chunks(reduce, vocab_size, hooks, rows, head, False)[0], None

    return hooks.per_device_rows(local, rows, None, head)[0]


def _forward(
    reduce: Reduce,
    vocab_size: int,
    gradient_dtype: DTypeLike,
    hooks: LayoutHooks,
    rows: Rows,
    head: Kernel,
) -> tuple[Array, Any]:
    def local(rows: Rows, own: None, head: Kernel) -> tuple[Any, Kernel]:
        values, of_hidden, of_head = _in_chunks(reduce, vocab_size, hooks, rows, head, True)
        return (values, of_hidden), jax.tree.map(lambda x: x[None], of_head)

    (values, of_hidden), of_head = hooks.per_device_rows(local, rows, None, head)
    return values, (rows, head, of_hidden, of_head)


def _backward(
    reduce: Reduce,
    vocab_size: int,
    gradient_dtype: DTypeLike,
    hooks: LayoutHooks,
    saved: Any,
    g: Array,
) -> tuple[Any, Kernel]:
    rows, head, of_hidden, of_head = saved

    def local(rows: Any, of_head: Kernel, head: Kernel) -> tuple[Array, Kernel]:
        (hidden, weight, given), of_hidden, g = rows
        has_loss = weight != 0
        low = jnp.where(has_loss, g, jnp.inf).min()
        high = jnp.where(has_loss, g, -jnp.inf).max()
        scale = jnp.where(has_loss.any(), high, 0)

        def scaled() -> Kernel:
            return jax.tree.map(lambda x: x[0] * scale, of_head)

        def again() -> Kernel:
            weighted = hidden, jnp.where(has_loss, weight * g, 0), given
            return _in_chunks(reduce, vocab_size, hooks, weighted, head, True)[2]

        # the mean of a batch, which training takes, asks for the same of every loss
        differ = hooks.max_over_devices((low < high).astype(jnp.int32))
        of_head = jax.lax.cond(differ > 0, again, scaled)
        of_hidden = of_hidden.astype(g.dtype) * g[..., None]
        wide = jnp.promote_types(gradient_dtype, hidden.dtype)
        return of_hidden.astype(hidden.dtype), jax.tree.map(lambda x: x[None].astype(wide), of_head)

    of_hidden, of_head = hooks.per_device_rows(local, (rows, of_hidden, g), of_head, head)
    of_head = (
        x.astype(like.dtype) for x, like in zip(hooks.sum_over_devices(*of_head), head, strict=True)
    )
    return (of_hidden, None, None), tuple(of_head)


weighted_losses.defvjp(_forward, _backward)


def _in_chunks(
    reduce: Reduce, vocab_size: int, hooks: LayoutHooks, rows: Rows, head: Kernel, gradients: bool
) -> tuple[Array, Array | None, Kernel | None]:
    """(losses [B, L], with `gradients` those of the hidden states [B, L, D] and of the head)."""
    hidden, weight, given = rows
    shape = weight.shape
    hidden, weight, *given = (jnp.reshape(x, (-1, *x.shape[2:])) for x in (hidden, weight, *given))
    kernel, bias = head[0].astype(hidden.dtype), head[1]
    wide = jnp.promote_types(hidden.dtype, jnp.float32)
    n, size = len(weight), chunk_rows(len(weight), len(bias))
    has_loss = weight != 0
    count = has_loss.sum()
    before = jnp.cumsum(has_loss)
    rank = jnp.where(has_loss, before - 1, count + jnp.arange(n) - before)
    order = jnp.zeros(n, rank.dtype).at[rank].set(jnp.arange(n), unique_indices=True)
    at = jnp.arange(-(-n // size) * size)
    # beyond the last loss, that again without a weight: what has none may not be a number
    take = order[jnp.maximum(jnp.minimum(at, count - 1), 0)]
    hidden, weight, *given = (
        jnp.take(x, take, axis=0, mode="clip") for x in (hidden, weight, *given)
    )
    weight = jnp.where(at < count, weight, 0)

    def turn(i: Array, out: Any) -> Any:
        def chunk(x: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(x, i * size, size)

        def put(x: Array, new: Array) -> Array:
            return jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), i * size, 0)

        x, w = chunk(hidden), chunk(weight)

        def losses(logits: Array) -> Array:
            return reduce(logits[:, :vocab_size], *(chunk(a) for a in given))

        values, of_hidden, of_head = out
        logits = jnp.dot(x, kernel, preferred_element_type=wide) + bias
        if not gradients:
            return put(values, jnp.where(w == 0, 0, w * losses(logits))), None, None
        value, pull = jax.vjp(losses, logits)
        (d,) = pull(w.astype(value.dtype))
        narrow = d.astype(x.dtype)
        of_x = jnp.dot(narrow, kernel.T, preferred_element_type=wide)
        of_kernel = jnp.dot(x.T, narrow, preferred_element_type=wide)
        return (
            put(values, jnp.where(w == 0, 0, w * value)),
            put(of_hidden, of_x),
            (of_head[0] + of_kernel, of_head[1] + d.sum(axis=0)),
        )

    out = jnp.zeros(len(at), wide), None, None
    if gradients:
        out = out[0], jnp.zeros_like(hidden), tuple(jnp.zeros(x.shape, wide) for x in head)
    turns = hooks.max_over_devices(-(-count // size))
    values, of_hidden, of_head = jax.lax.fori_loop(0, turns, turn, out)
    values, of_hidden = jax.tree.map(
        lambda x: x[rank].reshape(*shape, *x.shape[1:]), (values, of_hidden)
    )
    return values, of_hidden, of_head


def chunk_rows(positions: int, padded_vocab: int) -> int:
    """Positions of a chunk of logits [., V_pad] that is read at once, a multiple of 8."""
    most = max(LOGIT_BYTES // (4 * padded_vocab), 1)
    wanted = max(-(-positions // CHUNKS), ROWS)
    return min(-(-wanted // 8) * 8, most, positions)
