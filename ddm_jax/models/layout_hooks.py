"""What a network has to know of the layout that it runs under: functions and numbers, not a mesh.

The defaults are for a single device, or for a program in which each device sees only its own
examples. parallel/layout_hooks.py makes those of a layout.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

Tree = Any  # a pytree of arrays
RowFunction = Callable[[Tree, Tree, Tree], tuple[Tree, Tree]]


def identity(x: Array) -> Array:
    """x, for a single device: no constraint, and the largest of one number."""
    return x


def take_rows(embedding: Array, ids: Array, dtype: DTypeLike) -> Array:
    """Rows of an embedding that is not split."""
    return jnp.take(embedding, ids, axis=0).astype(dtype)


def call_on_heads(function: Callable[..., Array], *arrays: Array) -> Array:
    """function(*arrays), on arrays [B, L, H, D] that are not split."""
    return function(*arrays)


def call_on_rows(function: RowFunction, rows: Tree, own: Tree, whole: Tree) -> tuple[Tree, Tree]:
    """function(rows, own, whole), on arrays that are not split."""
    return function(rows, own, whole)


def sum_parts(kernel: Array, bias: Array) -> tuple[Array, Array]:
    """The sums over the first axis."""
    return kernel.sum(axis=0), bias.sum(axis=0)


@dataclass(frozen=True)
class LayoutHooks:
    """What differs between layouts within a network.

    Attributes:
      constrain: constrain(x [B, L, D]) -> x, with the sharding that the layout gives activations.
      lookup: lookup(embedding [V, D], ids int32[B, L], dtype) -> [B, L, D], the rows of these ids.
      per_device_heads: per_device_heads(f, *arrays [B, L, H, D]) -> [B, L, H, D] runs f on each
        device, for kernels that the compiler cannot partition. A device gets its own examples and
        heads; of the first array its own positions, of the others all positions.
      per_device_rows: per_device_rows(f, rows, own, whole) -> (rows, own) runs f on each device.
        `rows` is a tree of [B, L, ...], of which f gets the device's own examples and positions;
        `own` is a tree of [devices, ...], of which f gets and returns [1, ...]; and `whole` is a
        tree of arrays that every f gets all of.
      max_over_devices: within such an f, the largest of the numbers that the devices have. Only
        where the vocabulary is split, since only there do devices wait for each other within f;
        elsewhere the number itself.
      sum_over_devices: sum_over_devices(kernel [devices, D, V], bias [devices, V]) -> ([D, V], [V])
        sums what per_device_rows returned in `own` for a head.
      batch_parts: number of parts that the sequences of a batch are split into.
      position_parts: number of parts that the positions of a sequence are split into.
      vocabulary_parts: number of parts that the logits of a position are split into.
    """

    constrain: Callable[[Array], Array] = identity
    lookup: Callable[[Array, Array, DTypeLike], Array] = take_rows
    per_device_heads: Callable[..., Array] = call_on_heads
    per_device_rows: Callable[[RowFunction, Tree, Tree, Tree], tuple[Tree, Tree]] = call_on_rows
    max_over_devices: Callable[[Array], Array] = identity
    sum_over_devices: Callable[[Array, Array], tuple[Array, Array]] = sum_parts
    batch_parts: int = 1
    position_parts: int = 1
    vocabulary_parts: int = 1


SINGLE_DEVICE = LayoutHooks()
