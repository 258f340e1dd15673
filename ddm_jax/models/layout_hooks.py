"""What a network is told of the layout that it runs under: how, not where."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


def anywhere(x: Array) -> Array:
    """Leaves the place of an array to the compiler."""
    return x


def rows_of(embedding: Array, ids: Array, dtype: DTypeLike) -> Array:
    """Looks up rows of a whole array."""
    return jnp.take(embedding, ids, axis=0).astype(dtype)


def alone(x: Array) -> Array:
    """The largest of one."""
    return x


def at_once(function: Callable[..., Array], *heads: Any) -> Array:
    """Runs a function of [B, L, H, D] arrays on whole arrays."""
    return function(*heads)


def all_rows(function: Callable[..., Any], rows: Any, own: Any, whole: Any) -> Any:
    """Runs a function on whole arrays, of one device."""
    return function(rows, own, whole)


def added(*parts: Array) -> tuple[Array, ...]:
    """The sum over the first axis of each."""
    return tuple(x.sum(axis=0) for x in parts)


@dataclass(frozen=True)
class LayoutHooks:
    """A layout, as far as a network has to know it; the default is a device of its own.

    constrain: says where an activation [B, L, D] lies.
    lookup: lookup(embedding [V, D], ids [B, L], dtype) -> [B, L, D], the rows of these ids.
    locally: locally(f, *arrays [B, L, H, D]) runs f on each device's own examples and heads, the
      first array's own positions and all of the others', for kernels that cannot be partitioned.
    rowwise: rowwise(f, rows, own, whole) -> (rows, own) runs f on each device's own positions of
      the [B, L, ...] arrays in the tree `rows`, its own part of those in `own`, [devices, ...],
      where f sees and gives [1, ...], and all of those in `whole`.
    largest: within f, the largest of the numbers that devices have, if they wait for each other
      there: where they split the vocabulary.
    summed: summed(kernel [devices, D, V], bias [devices, V]) of a head, from `own`: their sums.
    examples, positions, vocabulary: into how many parts the sequences of a batch, the positions of
      a sequence and the logits of a position are split.
    """

    constrain: Callable[[Array], Array] = anywhere
    lookup: Callable[[Array, Array, DTypeLike], Array] = rows_of
    per_device_heads: Callable[..., Array] = at_once
    per_device_rows: Callable[..., Any] = all_rows
    max_over_devices: Callable[[Array], Array] = alone
    sum_over_devices: Callable[[Array, Array], tuple[Array, ...]] = added
    examples: int = 1
    positions: int = 1
    vocabulary: int = 1


SINGLE_DEVICE = LayoutHooks()
