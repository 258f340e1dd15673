"""Functions of a PartitionSpec: the axes of the mesh that each dimension of an array is split over.

An entry of a spec, for one dimension, is the name of an axis, several names, or None.
"""

from collections.abc import Collection

import jax
from jax import Array
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

Entry = str | tuple[str, ...] | None


def entry_axes(entry: Entry) -> tuple[str, ...]:
    """The axes that one dimension is split over."""
    return (entry,) if isinstance(entry, str) else entry or ()


def spec_axes(spec: P) -> tuple[str, ...]:
    """The axes that any dimension is split over."""
    return tuple(name for entry in spec for name in entry_axes(entry))


def restrict_to_axes(spec: P, axes: Collection[str]) -> P:
    """The spec without the axes that are not in `axes`."""
    return P(*(tuple(name for name in entry_axes(entry) if name in axes) or None for entry in spec))


def psum_to_spec(x: Array, spec: P, axes: tuple[str, ...], dtype: DTypeLike) -> Array:
    """The sum over devices, of which each keeps the part that `spec` gives it; within shard_map.

    Args:
      x: the summand of this device, a whole array.
      spec: how the sum is split; its dimensions are summed by psum_scatter, the rest by psum.
      axes: the axes of the mesh to sum over, those of `spec` included.
      dtype: in which devices add; the result is in that of x.
    """
    parts = x.astype(dtype)
    for dimension, entry in enumerate(spec):
        if split := entry_axes(entry):
            parts = jax.lax.psum_scatter(parts, split, scatter_dimension=dimension, tiled=True)
    rest = tuple(axis for axis in axes if axis not in spec_axes(spec))
    return (jax.lax.psum(parts, rest) if rest else parts).astype(x.dtype)
