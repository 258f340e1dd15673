"""Places, which are PartitionSpecs: the axes of the mesh that each dimension is split over."""

from collections.abc import Collection

import jax
from jax import Array
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike


def only(spec: P, axes: Collection[str]) -> P:
    """The part of a place that is along these axes."""
    return P(*(tuple(name for name in names(entry) if name in axes) or None for entry in spec))


def names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """The axes that a dimension is split over."""
    return (entry,) if isinstance(entry, str) else entry or ()


def axes_of(place: P) -> tuple[str, ...]:
    """All axes that a place splits something over."""
    return tuple(name for entry in place for name in names(entry))


def total(x: Array, place: P, axes: tuple[str, ...], dtype: DTypeLike) -> Array:
    """The sum over these axes in dtype; of a dimension that `place` splits, the own part."""
    parts = x.astype(dtype)
    for dimension, entry in enumerate(place):
        if split := names(entry):
            parts = jax.lax.psum_scatter(parts, split, scatter_dimension=dimension, tiled=True)
    rest = tuple(axis for axis in axes if axis not in axes_of(place))
    return (jax.lax.psum(parts, rest) if rest else parts).astype(x.dtype)
