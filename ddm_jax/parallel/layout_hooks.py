"""What a network does on the devices of a layout: its LayoutHooks (models/layout_hooks.py)."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from ddm_jax.models.layout_hooks import LayoutHooks, added
from ddm_jax.parallel.layouts import Layout
from ddm_jax.parallel.partition_specs import axes_of, names, only, total


def hooks_of(layout: Layout) -> LayoutHooks:
    """What a network is told of a layout."""
    within = _Within(layout)
    if layout.row.mapped:
        return LayoutHooks(
            per_device_heads=within.per_device_heads, per_device_rows=within.per_device_rows
        )
    return LayoutHooks(
        within.constrain,
        within.lookup,
        within.per_device_heads,
        within.per_device_rows,
        within.max_over_devices,
        within.sum_over_devices,
        examples=layout.size(*layout.row.batch),
        positions=layout.size(layout.row.positions),
        vocabulary=layout.mesh.shape.get("model", 1),
    )


def replica_hooks(layout: Layout) -> LayoutHooks:
    """The same within `Layout.sum_per_replica`."""
    examples = layout.size(*layout.row.batch) // layout.size(*layout.replicas)
    return dataclasses.replace(hooks_of(layout), examples=examples)


@dataclass(frozen=True)
class _Within:
    """The functions of a LayoutHooks, which says what they are; equal for equal layouts."""

    layout: Layout

    def constrain(self, x: Array) -> Array:
        mesh, free = self._free()
        return _placed(x, mesh, only(P(*self._rows, None), free))

    def lookup(self, embedding: Array, ids: Array, dtype: DTypeLike) -> Array:
        layout, (mesh, free) = self.layout, self._free()
        whole = layout.row.optimizer_only
        rows, columns = (None, None) if whole else layout.spec("embed/embedding")
        place = only(self._rows, free)
        axes = axes_of(place)
        # either devices look up the ids of all, in their own columns, and exchange what they found;
        # or they gather all columns, and sum up the gradients of all rows, which sends them twice
        fewer = ids.size // layout.size(*axes) < 2 * len(embedding)
        if not (fewer and columns in axes and rows is None and self._splits(ids.shape, place)):
            table = _placed(embedding, mesh, only(P(rows, None), free))
            return self.constrain(jnp.take(table, ids, axis=0).astype(dtype))

        def exchanged(embedding: Array, ids: Array) -> Array:
            ids = jax.lax.all_gather(ids, columns, tiled=True)
            found = jnp.take(embedding, ids, axis=0).astype(dtype)
            return jax.lax.all_to_all(found, columns, split_axis=0, concat_axis=2, tiled=True)

        return jax.shard_map(
            exchanged,
            mesh=mesh,
            in_specs=(P(None, columns), place),
            out_specs=place,
            axis_names=set(axes),
            check_vma=False,
        )(embedding, ids)

    def per_device_heads(self, function: Callable[..., Array], *arrays: Array) -> Array:
        mesh, free = self._free()
        if not free:
            return function(*arrays)
        batch, positions = self._rows
        heads = "model" if "model" in mesh.shape else None
        whole = only(P(batch, None, heads, None), free)
        own = only(P(batch, positions, heads, None), free)
        specs = (own, *(whole for _ in arrays[1:]))
        return jax.shard_map(
            function, mesh=mesh, in_specs=specs, out_specs=own, axis_names=free, check_vma=False
        )(*arrays)

    def per_device_rows(self, function: Callable[..., Any], rows: Any, own: Any, whole: Any) -> Any:
        mesh, free = self._free()
        place = only(self._rows, free)
        axes = axes_of(place)
        shapes = [x.shape for x in jax.tree.leaves(rows)]
        if not axes or not all(self._splits(shape, place) for shape in shapes):
            return function(rows, own, whole)  # or what does not split evenly, left to the compiler
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(place, P(axes), P()),
            out_specs=(place, P(axes)),
            axis_names=set(axes),
            check_vma=False,
        )(rows, own, whole)

    def sum_over_devices(self, *head: Array) -> tuple[Array, ...]:
        mesh, free = self._free()
        axes = axes_of(only(self._rows, free))
        # the compiler scatters no sums itself, but does not let ours be split by the vocabulary
        if not axes or len(head[0]) == 1 or "model" in mesh.shape:
            return added(*head)
        places = tuple(only(self.layout.spec(f"head/{name}"), axes) for name in ("kernel", "bias"))

        def of_devices(*head: Array) -> tuple[Array, ...]:
            return tuple(
                total(x[0], place, axes, x.dtype) for x, place in zip(head, places, strict=True)
            )

        return jax.shard_map(
            of_devices,
            mesh=mesh,
            in_specs=P(axes),
            out_specs=places,
            axis_names=set(axes),
            check_vma=False,
        )(*head)

    def max_over_devices(self, x: Array) -> Array:
        axes = jax.sharding.get_abstract_mesh().manual_axes
        return jax.lax.pmax(x, axes) if axes and "model" in self.layout.mesh.shape else x

    @property
    def _rows(self) -> P:
        """Where arrays [B, L, ...] lie."""
        return P(self.layout.row.batch, self.layout.row.positions)

    def _splits(self, shape: tuple[int, ...], place: P) -> bool:
        """Whether an array of this shape splits evenly."""
        sizes = (self.layout.size(*names(entry)) for entry in place)
        return not any(n % size for n, size in zip(shape, sizes, strict=False))

    def _free(self) -> tuple[Any, set[str]]:
        """The mesh where this is traced, and those of its axes that are not split already.

        jax.pmap, and `Layout.sum_per_replica` along the replicas, have split what is within them.
        """
        here = jax.sharding.get_abstract_mesh()
        split = set(here.manual_axes)
        mesh = self.layout.mesh
        return (here if split else mesh), set(mesh.axis_names) - split


def _placed(x: Array, mesh: Any, place: P) -> Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, place))
