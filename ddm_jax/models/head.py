"""Fused head: losses and gradients at the positions that carry a loss, computed in chunks.

Positions with a loss are sorted to the front and read in as many chunks as they fill. A chunk's
gradients are formed with its logits, which are freed before the next chunk: three matmuls for each
position with a loss and none for the others, where automatic differentiation would keep all logits
or compute them twice (the fused linear cross entropy of Liger, Hsu et al. 2024, arXiv:2410.10989).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from ddm_jax.models.layout_hooks import LayoutHooks

CHUNKS = 16  # of a device's positions, at least; half a chunk is computed for nothing
ROWS = 128  # of a chunk, at least: with fewer, matmuls wait for the kernel
LOGIT_BYTES = 2**28  # of float32 logits that a device holds at once, at most

Rows = tuple[Array, Array, tuple[Array, ...]]  # hidden [B, L, D], weight [B, L], given [B, L, ...]
Kernel = tuple[Array, Array]  # kernel [D, V_pad] and bias [V_pad] of a head
Saved = tuple[Rows, Kernel, Array, Kernel]  # rows, head, and the gradients of hidden and head


@dataclass(frozen=True)
class FusedLoss:
    """What the fused head computes; static in a program.

    Attributes:
      reduce: (logits float32[N, V], *given [N, ...]) -> float32[N], position by position; it closes
        over no array. Positions whose weight is 0 are not passed to it.
      vocab_size: V; the padding of the head beyond it has no logits.
      gradient_dtype: in which the gradients of devices are added up.
      hooks: of the layout.
    """

    reduce: Callable[..., Array]
    vocab_size: int
    gradient_dtype: DTypeLike
    hooks: LayoutHooks


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def weighted_losses(fused: FusedLoss, rows: Rows, head: Kernel) -> Array:
    """weight * reduce(logits, *given) at each position, 0 where the weight is: float32[B, L].

    Args:
      fused: the loss.
      rows: the final hidden states, the weight of each loss, and the other arguments of `reduce`.
        Only the hidden states have gradients.
      head: kernel and bias.
    """

    def on_device(rows: Rows, own: None, head: Kernel) -> tuple[Array, None]:
        return _losses(fused, rows, head), None

    return fused.hooks.per_device_rows(on_device, rows, None, head)[0]


def _forward(fused: FusedLoss, rows: Rows, head: Kernel) -> tuple[Array, Saved]:
    def on_device(rows: Rows, own: None, head: Kernel) -> tuple[tuple[Array, Array], Kernel]:
        values, d_hidden, d_head = _losses_and_gradients(fused, rows, head)
        return (values, d_hidden), jax.tree.map(lambda x: x[None], d_head)

    (values, d_hidden), d_head = fused.hooks.per_device_rows(on_device, rows, None, head)
    return values, (rows, head, d_hidden, d_head)


def _backward(
    fused: FusedLoss, saved: Saved, g: Array
) -> tuple[tuple[Array, None, None], tuple[Array, ...]]:
    rows, head, d_hidden, d_head = saved
    hooks = fused.hooks

    def on_device(
        rows: tuple[Rows, Array, Array], d_head: Kernel, head: Kernel
    ) -> tuple[Array, Kernel]:
        (hidden, weight, given), d_hidden, g = rows
        has_loss = weight != 0
        low = jnp.where(has_loss, g, jnp.inf).min()
        high = jnp.where(has_loss, g, -jnp.inf).max()
        scale = jnp.where(has_loss.any(), high, 0)

        def scaled() -> Kernel:
            return jax.tree.map(lambda x: x[0] * scale, d_head)

        def again() -> Kernel:
            weighted = hidden, jnp.where(has_loss, weight * g, 0), given
            return _losses_and_gradients(fused, weighted, head)[2]

        # the mean of a batch, which training takes, has the same g for every loss
        differ = hooks.max_over_devices((low < high).astype(jnp.int32))
        d_head = jax.lax.cond(differ > 0, again, scaled)
        d_hidden = d_hidden.astype(g.dtype) * g[..., None]
        wide = jnp.promote_types(fused.gradient_dtype, hidden.dtype)
        return d_hidden.astype(hidden.dtype), jax.tree.map(lambda x: x[None].astype(wide), d_head)

    d_hidden, d_head = hooks.per_device_rows(on_device, (rows, d_hidden, g), d_head, head)
    d_head = hooks.sum_over_devices(*d_head)
    of_head = tuple(d.astype(x.dtype) for d, x in zip(d_head, head, strict=True))
    return (d_hidden, None, None), of_head


weighted_losses.defvjp(_forward, _backward)


def _losses(fused: FusedLoss, rows: Rows, head: Kernel) -> Array:
    """`weighted_losses` of one device: [B, L]."""
    table, kernel, bias = _losses_first(rows, len(head[1])), _cast(head[0], rows), head[1]
    wide = jnp.promote_types(kernel.dtype, jnp.float32)

    def step(i: Array, values: Array) -> Array:
        x, w = table.chunk(table.hidden, i), table.chunk(table.weight, i)
        logits = jnp.dot(x, kernel, preferred_element_type=wide) + bias
        given = (table.chunk(a, i) for a in table.given)
        losses = fused.reduce(logits[:, : fused.vocab_size], *given)
        return table.put(values, jnp.where(w == 0, 0, w * losses), i)

    values = jnp.zeros(len(table.weight), wide)
    steps = fused.hooks.max_over_devices(-(-table.count // table.size))
    return table.in_order(jax.lax.fori_loop(0, steps, step, values))


def _losses_and_gradients(
    fused: FusedLoss, rows: Rows, head: Kernel
) -> tuple[Array, Array, Kernel]:
    """The losses of one device [B, L], and the gradients of their sum.

    Returns:
      losses, gradients of the hidden states [B, L, D], gradients of the head.
    """
    table, kernel, bias = _losses_first(rows, len(head[1])), _cast(head[0], rows), head[1]
    wide = jnp.promote_types(kernel.dtype, jnp.float32)

    def step(i: Array, out: tuple[Array, Array, Kernel]) -> tuple[Array, Array, Kernel]:
        x, w = table.chunk(table.hidden, i), table.chunk(table.weight, i)

        def losses(logits: Array) -> Array:
            given = (table.chunk(a, i) for a in table.given)
            return fused.reduce(logits[:, : fused.vocab_size], *given)

        values, d_hidden, (d_kernel, d_bias) = out
        logits = jnp.dot(x, kernel, preferred_element_type=wide) + bias
        value, pull = jax.vjp(losses, logits)
        (d_logits,) = pull(w.astype(value.dtype))
        narrow = d_logits.astype(x.dtype)
        d_x = jnp.dot(narrow, kernel.T, preferred_element_type=wide)
        own = jnp.dot(x.T, narrow, preferred_element_type=wide)
        return (
            table.put(values, jnp.where(w == 0, 0, w * value), i),
            table.put(d_hidden, d_x, i),
            (d_kernel + own, d_bias + d_logits.sum(axis=0)),
        )

    values, d_hidden = jnp.zeros(len(table.weight), wide), jnp.zeros_like(table.hidden)
    d_head = jnp.zeros(kernel.shape, wide), jnp.zeros(bias.shape, wide)
    steps = fused.hooks.max_over_devices(-(-table.count // table.size))
    values, d_hidden, d_head = jax.lax.fori_loop(0, steps, step, (values, d_hidden, d_head))
    return table.in_order(values), table.in_order(d_hidden), d_head


def _cast(kernel: Array, rows: Rows) -> Array:
    return kernel.astype(rows[0].dtype)


@dataclass(frozen=True)
class _Table:
    """The positions of a device, those with a loss first, in N rows that fill whole chunks.

    Attributes:
      hidden: [N, D].
      weight: [N], 0 in all rows after the last loss.
      given: arrays [N, ...].
      count: int32[], number of losses.
      size: rows of a chunk.
      rank: int32[B L], the row of each position.
      shape: (B, L).
    """

    hidden: Array
    weight: Array
    given: tuple[Array, ...]
    count: Array
    size: int
    rank: Array
    shape: tuple[int, ...]

    def chunk(self, x: Array, i: Array) -> Array:
        """Chunk i of x [N, ...]."""
        return jax.lax.dynamic_slice_in_dim(x, i * self.size, self.size)

    def put(self, x: Array, new: Array, i: Array) -> Array:
        """x [N, ...] with chunk i replaced."""
        return jax.lax.dynamic_update_slice_in_dim(x, new.astype(x.dtype), i * self.size, 0)

    def in_order(self, x: Array) -> Array:
        """x [N, ...] -> [B, L, ...], in the order of the positions."""
        return x[self.rank].reshape(*self.shape, *x.shape[1:])


def _losses_first(rows: Rows, padded_vocab: int) -> _Table:
    hidden, weight, given = jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[2:])), rows)
    n, size = len(weight), chunk_rows(len(weight), padded_vocab)
    has_loss = weight != 0
    count = has_loss.sum()
    before = jnp.cumsum(has_loss)
    rank = jnp.where(has_loss, before - 1, count + jnp.arange(n) - before)
    order = jnp.zeros(n, rank.dtype).at[rank].set(jnp.arange(n), unique_indices=True)
    at = jnp.arange(-(-n // size) * size)
    # rows after the last loss repeat it without a weight: positions without a loss may hold NaN
    take = order[jnp.maximum(jnp.minimum(at, count - 1), 0)]
    hidden, weight, given = jax.tree.map(
        lambda x: jnp.take(x, take, axis=0, mode="clip"), (hidden, weight, given)
    )
    weight = jnp.where(at < count, weight, 0)
    return _Table(hidden, weight, given, count, size, rank, rows[1].shape)


def chunk_rows(positions: int, padded_vocab: int) -> int:
    """Positions whose logits [., V_pad] are computed at once, a multiple of 8 where possible."""
    most = max(LOGIT_BYTES // (4 * padded_vocab), 1)
    wanted = max(-(-positions // CHUNKS), ROWS)
    return min(-(-wanted // 8) * 8, most, positions)
