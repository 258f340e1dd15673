"""The LayoutHooks of a layout: the functions that a network runs on its devices.

models/layout_hooks.py describes each of them; here they are for the mesh of a layout.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from ddm_jax.models.layout_hooks import LayoutHooks, RowFunction, Tree, sum_parts
from ddm_jax.parallel.layouts import Layout
from ddm_jax.parallel.partition_specs import (
    entry_axes,
    psum_to_spec,
    restrict_to_axes,
    spec_axes,
)


def hooks_of(layout: Layout) -> LayoutHooks:
    """The hooks that a network gets under a layout.

    Under jax.pmap a device sees only its own examples, so that most defaults are right.
    """
    on_mesh = _MeshHooks(layout)
    if layout.entry.uses_pmap:
        return LayoutHooks(
            per_device_heads=on_mesh.per_device_heads, per_device_rows=on_mesh.per_device_rows
        )
    return LayoutHooks(
        constrain=on_mesh.constrain,
        lookup=on_mesh.lookup,
        per_device_heads=on_mesh.per_device_heads,
        per_device_rows=on_mesh.per_device_rows,
        max_over_devices=on_mesh.max_over_devices,
        sum_over_devices=on_mesh.sum_over_devices,
        batch_parts=layout.axis_size(*layout.entry.batch_axes),
        position_parts=layout.axis_size(layout.entry.position_axis),
        vocabulary_parts=layout.mesh.shape.get("model", 1),
    )


def replica_hooks(layout: Layout) -> LayoutHooks:
    """The same within `Layout.sum_per_replica`, where a replica sees only its own examples."""
    batch, replicas = layout.entry.batch_axes, layout.replica_axes
    parts = layout.axis_size(*batch) // layout.axis_size(*replicas)
    return dataclasses.replace(hooks_of(layout), batch_parts=parts)


@dataclass(frozen=True)
class _MeshHooks:
    """The functions of the LayoutHooks of a layout; equal for equal layouts.

    Equality matters since jax.jit traces again when the hooks of a Readout differ.
    """

    layout: Layout

    def constrain(self, x: Array) -> Array:
        mesh, auto_axes = self._auto_axes()
        return _constrain(x, mesh, restrict_to_axes(P(*self._sequence_spec, None), auto_axes))

    def lookup(self, embedding: Array, ids: Array, dtype: DTypeLike) -> Array:
        layout, (mesh, auto_axes) = self.layout, self._auto_axes()
        whole = layout.entry.optimizer_only
        vocab_axis, width_axis = (None, None) if whole else layout.spec("embed/embedding")
        spec = restrict_to_axes(self._sequence_spec, auto_axes)
        axes = spec_axes(spec)
        # either devices look up the ids of all, in their own columns, and exchange what they found;
        # or they gather all columns, and sum up the gradients of all rows, which sends them twice
        fewer = ids.size // layout.axis_size(*axes) < 2 * len(embedding)
        split = width_axis in axes and vocab_axis is None and self._splits_evenly(ids.shape, spec)
        if not (fewer and split):
            table = _constrain(embedding, mesh, restrict_to_axes(P(vocab_axis, None), auto_axes))
            return self.constrain(jnp.take(table, ids, axis=0).astype(dtype))

        def look_up_own_columns(embedding: Array, ids: Array) -> Array:
            ids = jax.lax.all_gather(ids, width_axis, tiled=True)
            found = jnp.take(embedding, ids, axis=0).astype(dtype)
            return jax.lax.all_to_all(found, width_axis, split_axis=0, concat_axis=2, tiled=True)

        return jax.shard_map(
            look_up_own_columns,
            mesh=mesh,
            in_specs=(P(None, width_axis), spec),
            out_specs=spec,
            axis_names=set(axes),
            check_vma=False,
        )(embedding, ids)

    def per_device_heads(self, function: Callable[..., Array], *arrays: Array) -> Array:
        mesh, auto_axes = self._auto_axes()
        if not auto_axes:
            return function(*arrays)
        batch, positions = self._sequence_spec
        heads = "model" if "model" in mesh.shape else None
        all_positions = restrict_to_axes(P(batch, None, heads, None), auto_axes)
        own_positions = restrict_to_axes(P(batch, positions, heads, None), auto_axes)
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(own_positions, *(all_positions for _ in arrays[1:])),
            out_specs=own_positions,
            axis_names=auto_axes,
            check_vma=False,
        )(*arrays)

    def per_device_rows(
        self, function: RowFunction, rows: Tree, own: Tree, whole: Tree
    ) -> tuple[Tree, Tree]:
        mesh, auto_axes = self._auto_axes()
        spec = restrict_to_axes(self._sequence_spec, auto_axes)
        axes = spec_axes(spec)
        shapes = [x.shape for x in jax.tree.leaves(rows)]
        if not axes or not all(self._splits_evenly(shape, spec) for shape in shapes):
            return function(rows, own, whole)  # the compiler splits what does not split evenly
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(spec, P(axes), P()),
            out_specs=(spec, P(axes)),
            axis_names=set(axes),
            check_vma=False,
        )(rows, own, whole)

    def sum_over_devices(self, kernel: Array, bias: Array) -> tuple[Array, Array]:
        mesh, auto_axes = self._auto_axes()
        axes = spec_axes(restrict_to_axes(self._sequence_spec, auto_axes))
        # the compiler scatters no sums itself, but does not let ours be split by the vocabulary
        if not axes or len(kernel) == 1 or "model" in mesh.shape:
            return sum_parts(kernel, bias)
        kernel_spec = restrict_to_axes(self.layout.spec("head/kernel"), axes)
        bias_spec = restrict_to_axes(self.layout.spec("head/bias"), axes)

        def sum_own(kernel: Array, bias: Array) -> tuple[Array, Array]:
            return (
                psum_to_spec(kernel[0], kernel_spec, axes, kernel.dtype),
                psum_to_spec(bias[0], bias_spec, axes, bias.dtype),
            )

        return jax.shard_map(
            sum_own,
            mesh=mesh,
            in_specs=P(axes),
            out_specs=(kernel_spec, bias_spec),
            axis_names=set(axes),
            check_vma=False,
        )(kernel, bias)

    def max_over_devices(self, x: Array) -> Array:
        axes = jax.sharding.get_abstract_mesh().manual_axes
        return jax.lax.pmax(x, axes) if axes and "model" in self.layout.mesh.shape else x

    @property
    def _sequence_spec(self) -> P:
        """How arrays [B, L, ...] are split."""
        return P(self.layout.entry.batch_axes, self.layout.entry.position_axis)

    def _splits_evenly(self, shape: tuple[int, ...], spec: P) -> bool:
        sizes = (self.layout.axis_size(*entry_axes(entry)) for entry in spec)
        return not any(n % size for n, size in zip(shape, sizes, strict=False))

    def _auto_axes(self) -> tuple[Mesh | AbstractMesh, set[str]]:
        """The mesh where this is traced, and those of its axes that are not manual.

        jax.pmap, and `Layout.sum_per_replica` along the replicas, have already split arrays over
        their axes, which makes these manual within them.
        """
        here = jax.sharding.get_abstract_mesh()
        manual = set(here.manual_axes)
        mesh = self.layout.mesh
        return (here if manual else mesh), set(mesh.axis_names) - manual


def _constrain(x: Array, mesh: Mesh | AbstractMesh, spec: P) -> Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
