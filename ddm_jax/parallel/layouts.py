"""Layouts: how a run is split over devices. A mesh, a PartitionSpec per parameter, a batch spec.

The model does not know its layout, which changes speed and memory, never the numbers. A layout is
data: an entry of LAYOUTS names the axes of the mesh, and PARTITION_RULES says which dimension of
which parameter is split over which of them. Axes that a layout does not have split nothing.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from ddm_jax.config import LayoutConfig, lookup
from ddm_jax.errors import UserError
from ddm_jax.parallel.meshes import axis_sizes, device_array
from ddm_jax.parallel.partition_specs import psum_to_spec, restrict_to_axes

Tree = Any  # a pytree: of arrays, of their shapes, or of their shardings
# gradients(params, examples) -> (gradients, metrics)
Gradients = Callable[[Tree, Tree], tuple[Tree, Tree]]

# Path of a parameter -> its PartitionSpec, by the first pattern that is found in the path. The
# layers, on the first axis of `blocks`, are never split, since a scan runs over them. "model"
# follows Megatron-LM (Shoeybi et al. 2019, arXiv:1909.08053, section 3): heads and the inner width
# of the MLP, so that a block has two sums over devices; and the vocabulary.
PARTITION_RULES: tuple[tuple[str, P], ...] = (
    (r"(qkv|cross_kv)/kernel$", P(None, "fsdp", None, "model", None)),
    (r"(qkv|cross_kv)/bias$", P(None, None, "model", None)),
    (r"cross_q/kernel$", P(None, "fsdp", "model", None)),
    (r"cross_q/bias$", P(None, "model", None)),
    (r"/(out|cross_out)/kernel$", P(None, "model", None, "fsdp")),
    (r"blocks/mlp_in/kernel$", P(None, "fsdp", "model")),
    (r"blocks/mlp_in/bias$", P(None, "model")),
    (r"blocks/mlp_out/kernel$", P(None, "model", "fsdp")),
    (r"blocks/adaln/kernel$", P(None, None, "fsdp")),
    (r"embed/embedding$", P("model", "fsdp")),
    (r"head/kernel$", P("fsdp", "model")),
    (r"head/bias$", P("model")),
)
_PARAMETER_AXES = {axis for _, spec in PARTITION_RULES for axis in spec if axis}


@dataclass(frozen=True)
class LayoutEntry:
    """A layout of the table.

    Attributes:
      axes: the axes of the mesh, the outermost first, each with the largest size that it takes by
        default; the one with None takes the devices that are left.
      batch_axes: the axes that examples are split over.
      position_axis: the axis that the positions of activations are split over.
      optimizer_only: every device holds whole parameters, and PARTITION_RULES is for the optimizer
        state and the average of the weights.
      uses_pmap: jax.pmap runs the train step, otherwise jax.jit.
    """

    axes: Mapping[str, int | None]
    batch_axes: tuple[str, ...]
    position_axis: str | None = None
    optimizer_only: bool = False
    uses_pmap: bool = False


LAYOUTS: dict[str, LayoutEntry] = {
    # every device holds all parameters; gradients are averaged over the axis that jax.pmap names
    "pmap": LayoutEntry({"data": None}, batch_axes=("data",), uses_pmap=True),
    # the same, partitioned by the compiler
    "dp": LayoutEntry({"data": None}, batch_axes=("data",)),
    # ZeRO stage 1 (Rajbhandari et al. 2019, arXiv:1910.02054)
    "zero1": LayoutEntry({"fsdp": None}, batch_axes=("fsdp",), optimizer_only=True),
    # ZeRO stage 3: parameters are gathered where they are used
    "fsdp": LayoutEntry({"fsdp": None}, batch_axes=("fsdp",)),
    "tp": LayoutEntry({"data": None, "model": 8}, batch_axes=("data",)),
    "fsdp_tp": LayoutEntry({"fsdp": None, "model": 2}, batch_axes=("fsdp",)),
    # replicas of FSDP groups; across slices where there are several
    "hsdp": LayoutEntry({"data": 2, "fsdp": None}, batch_axes=("data", "fsdp")),
    # long context: each device has some positions of an example
    "sp": LayoutEntry({"data": None, "seq": 2}, batch_axes=("data",), position_axis="seq"),
}


@dataclass(frozen=True)
class Layout:
    """An entry of LAYOUTS on a mesh of devices.

    Attributes:
      name: of the entry; config.layout.name.
      mesh: devices along the axes of the entry.
    """

    name: str
    mesh: Mesh

    @property
    def entry(self) -> LayoutEntry:
        """The entry of the table."""
        return LAYOUTS[self.name]

    @property
    def pmap_axis(self) -> str | None:
        """The name that jax.pmap gives to the axis of devices; None under jax.jit."""
        return self.entry.batch_axes[0] if self.entry.uses_pmap else None

    @property
    def replica_axes(self) -> tuple[str, ...]:
        """Axes of several devices which have different examples and the same parameters."""
        entry = self.entry
        return tuple(
            axis
            for axis in entry.batch_axes
            if self.mesh.shape[axis] > 1 and (entry.optimizer_only or axis not in _PARAMETER_AXES)
        )

    @property
    def replicated(self) -> NamedSharding:
        """The sharding of arrays that every device holds whole."""
        return NamedSharding(self.mesh, P())

    @property
    def batch_sharding(self) -> NamedSharding:
        """The sharding of arrays whose first axis is the example."""
        return NamedSharding(self.mesh, P(self.entry.batch_axes))

    def axis_size(self, *axes: str | None) -> int:
        """The number of devices along these axes of the mesh; None counts as one."""
        return math.prod(self.mesh.shape[axis] for axis in axes if axis)

    def spec(self, path: str) -> P:
        """What PARTITION_RULES says of the parameter of this path, such as "embed/embedding"."""
        spec = next((spec for pattern, spec in PARTITION_RULES if re.search(pattern, path)), P())
        return P(*(axis if axis in self.mesh.shape else None for axis in spec))

    def param_shardings(self, params: Tree) -> Tree:
        """The sharding of each leaf of an (abstract) parameter tree.

        Raises:
          UserError: a parameter does not split evenly over its axis.
        """
        if self.entry.optimizer_only:
            return jax.tree.map(lambda _: self.replicated, params)
        return self.rule_shardings(params)

    def state_shardings(self, state: Tree) -> Tree:
        """The sharding of each leaf of an (abstract) train state.

        Raises:
          UserError: a parameter does not split evenly over its axis.
        """
        shardings = self.rule_shardings(state)
        return dataclasses.replace(shardings, params=self.param_shardings(state.params))

    def rule_shardings(self, tree: Tree) -> Tree:
        """The sharding of each leaf by PARTITION_RULES; the tree holds parameters at any depth.

        Raises:
          UserError: a parameter does not split evenly over its axis.
        """
        return jax.tree_util.tree_map_with_path(self._leaf_sharding, tree)

    def local_rows(self, size: int) -> tuple[int, ...]:
        """The rows of a global batch of this size that devices of this process hold."""
        found: set[int] = set()
        for rows in _first_slices(self.batch_sharding, size):
            found |= set(range(*rows.indices(size)))
        return tuple(sorted(found))

    def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """The `local_rows(B)` of this process -> global arrays [B, ...], split over the mesh."""

        def put(values: np.ndarray) -> Array:
            size = self._global_size(len(values))
            at = {row: i for i, row in enumerate(self.local_rows(size))}

            def shard(index: tuple[slice, ...] | None) -> np.ndarray:
                assert index is not None  # jax gives one to every device
                first, last, _ = index[0].indices(size)
                return values[at[first] : at[last - 1] + 1]

            shape = (size, *values.shape[1:])
            return jax.make_array_from_callback(shape, self.batch_sharding, shard)

        return {name: put(values) for name, values in batch.items()}

    def put_train_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """Like `put_batch`, for `program`: [devices, B / devices, ...] where jax.pmap runs it."""
        if not self.entry.uses_pmap:
            return self.put_batch(batch)
        each = self._global_size(len(next(iter(batch.values())))) // self.mesh.size
        return self.put_batch({k: x.reshape(-1, each, *x.shape[1:]) for k, x in batch.items()})

    def check_batch(self, size: int, field: str) -> None:
        """Checks that a global batch of this size splits over the devices.

        Args:
          size: number of examples.
          field: of the config, that sets it.

        Raises:
          UserError: it does not.
        """
        shards = self.axis_size(*self.entry.batch_axes)
        if size % shards:
            raise UserError(
                f"{field}={size} does not split over {shards} devices: make it a multiple of "
                f"{shards}."
            )

    def sum_gradients(self, gradients: Tree, dtype: DTypeLike) -> Tree:
        """The gradients of a device's examples -> those of all examples, within a train step.

        Under jax.jit they are global arrays. The compiler sums them where it sees fit, in the type
        that they were computed in. Here they get the sharding of the optimizer state, so that each
        device sums the part that it needs. Under jax.pmap they are summed here, in dtype.
        """
        axis = self.pmap_axis
        if axis is None:
            return jax.lax.with_sharding_constraint(gradients, self.rule_shardings(gradients))
        return jax.tree.map(lambda x: psum_to_spec(x, P(), (axis,), dtype), gradients)

    def sums_per_replica(self, microbatches: int) -> bool:
        """Whether a step uses `sum_per_replica`; otherwise the compiler sums where it sees fit.

        The compiler would sum in every iteration of a loop: over micro-batches, or over chunks of
        logits. But where the mesh has axes other than the replicas', `sum_per_replica` gathers more
        activations to differentiate the embedding, which costs more if the batch is not split into
        micro-batches.
        """
        if self.entry.uses_pmap or not self.replica_axes:
            return False
        return microbatches > 1 or self.axis_size(*self.replica_axes) == self.mesh.size

    def sum_per_replica(self, gradients: Gradients, dtype: DTypeLike) -> Gradients:
        """Sums gradients within each replica first, then once over the replicas.

        Args:
          gradients: gradients(params, examples) -> (gradients, metrics), both sums over examples, a
            tree of [B, ...]. It is called on the examples of a replica.
          dtype: in which replicas add.

        Returns:
          The same function of global arrays.
        """
        replicas = self.replica_axes

        def specs(params: Tree) -> Tree:
            """How gradients are split over the replicas: like the optimizer state."""
            shardings = self.rule_shardings(params)
            return jax.tree.map(lambda x: restrict_to_axes(x.spec, replicas), shardings)

        def of_replica(params: Tree, examples: Tree) -> tuple[Tree, Tree]:
            grads, metrics = gradients(params, examples)
            grads = jax.tree.map(
                lambda x, spec: psum_to_spec(x, spec, replicas, dtype), grads, specs(params)
            )
            return grads, jax.lax.psum(metrics, replicas)

        def over_replicas(params: Tree, examples: Tree) -> tuple[Tree, Tree]:
            grads, metrics = jax.shard_map(
                of_replica,
                mesh=self.mesh,
                in_specs=(P(), P(replicas)),
                out_specs=(specs(params), P()),
                axis_names=set(replicas),
                check_vma=False,
            )(params, examples)
            return jax.lax.with_sharding_constraint(grads, self.rule_shardings(grads)), metrics

        return over_replicas

    def program(self, step: Callable, state: Tree) -> jax.stages.Wrapped:
        """The train step as a program on global arrays, to be lowered, compiled and run.

        Args:
          step: step(state, batch) -> (state, metrics).
          state: an (abstract) train state. That of a call is donated.

        Returns:
          The same function; batch is of `put_train_batch`, and every device holds the metrics.
          jax.pmap takes global arrays only as `lower(state, batch).compile()`.
        """
        if self.entry.uses_pmap:
            return jax.pmap(
                step,
                self.pmap_axis,
                in_axes=(None, 0),
                out_axes=None,
                devices=list(self.mesh.devices.flat),
                donate_argnums=0,
            )
        shardings = self.state_shardings(state)
        return jax.jit(
            step,
            in_shardings=(shardings, self.batch_sharding),
            out_shardings=(shardings, self.replicated),
            donate_argnums=0,
        )

    def _global_size(self, local: int) -> int:
        """The size of the global batch whose rows on this process are `local` in number."""
        shards = self.axis_size(*self.entry.batch_axes)
        return local * shards // len(self.local_rows(shards))

    def _leaf_sharding(self, path: Sequence[Any], leaf: Any) -> NamedSharding:
        name = "/".join(str(getattr(k, "key", getattr(k, "name", k))) for k in path)
        spec = self.spec(name)
        for size, axis in zip(leaf.shape, spec, strict=False):
            if axis and size % self.mesh.shape[axis]:
                raise UserError(
                    f"config.layout.name={self.name!r} cannot split {name} {leaf.shape}: {size} is "
                    f"not a multiple of {axis}={self.mesh.shape[axis]}; set config.layout.axes to "
                    f"{axis}=N with N a divisor of {math.gcd(size, self.mesh.size)}, or change the "
                    "size of the model."
                )
        return NamedSharding(self.mesh, spec)


def _first_slices(sharding: NamedSharding, size: int) -> Iterator[slice]:
    """The part of an array [size] that each device of this process holds."""
    for index in sharding.addressable_devices_indices_map((size,)).values():
        assert index is not None  # jax gives one to every device
        yield index[0]


def make_layout(config: LayoutConfig, devices: Sequence[jax.Device]) -> Layout:
    """The layout of a config on these devices, which must be all that take part.

    Raises:
      UserError: an unknown layout, an axis that the layout does not have, or sizes that do not
        multiply to the number of devices.
    """
    entry = lookup(LAYOUTS, config.name, "config.layout.name")
    sizes = axis_sizes(config, entry.axes, len(devices))
    if entry.uses_pmap:  # the order of jax.pmap
        array = np.array(sorted(devices, key=lambda d: (d.process_index, d.id)))
    else:
        array = device_array(tuple(sizes.values()), devices)
    return Layout(config.name, Mesh(array, tuple(sizes)))


def dp(devices: Sequence[jax.Device]) -> Layout:
    """Data parallelism over these devices."""
    return make_layout(LayoutConfig("dp"), devices)


def local_dp(batch_size: int) -> Layout:
    """Data parallelism over as many local devices as divide a batch of this size."""
    return dp(jax.local_devices()[: math.gcd(batch_size, jax.local_device_count())])
