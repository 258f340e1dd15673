"""How a run is spread over devices: a mesh, where every parameter lies, how a batch is split.

The model knows none of it; a layout changes speed and memory, never the numbers. It is data: a row
of LAYOUTS names the axes of the mesh, and PLACES says which dimension of which parameter is split
along which of them. Axes that a layout does not have split nothing.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from ddm_jax.config import LayoutConfig, lookup
from ddm_jax.errors import UserError
from ddm_jax.parallel.partition_specs import only, total

# Path of a parameter -> its place, by the first pattern that is found in it; the layers, on the
# first axis of `blocks`, are never split, since a scan runs over them. "model" follows Megatron-LM
# (Shoeybi et al. 2019, arXiv:1909.08053, section 3): heads and the inner width of the MLP, so that
# a block has two sums over devices; and the vocabulary.
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
_SPLITTING = {axis for _, spec in PARTITION_RULES for axis in spec if axis}


@dataclass(frozen=True)
class LayoutEntry:
    """A layout of the table.

    axes: of the mesh, the outermost first, each with the largest size that it takes by default;
    the one with None takes what is left. batch: the axes that examples are split over. positions:
    the axis that the positions of activations are split over. optimizer_only: parameters lie whole
    on every device, and PLACES is for the optimizer state and the average of the weights.
    mapped: jax.pmap runs the step, otherwise jax.jit.
    """

    axes: Mapping[str, int | None]
    batch: tuple[str, ...]
    positions: str | None = None
    optimizer_only: bool = False
    mapped: bool = False


LAYOUTS: dict[str, LayoutEntry] = {
    # every device holds all, and gradients are averaged over the axis that jax.pmap names
    "pmap": LayoutEntry({"data": None}, batch=("data",), mapped=True),
    # the same, partitioned by the compiler
    "dp": LayoutEntry({"data": None}, batch=("data",)),
    # ZeRO stage 1 (Rajbhandari et al. 2019, arXiv:1910.02054)
    "zero1": LayoutEntry({"fsdp": None}, batch=("fsdp",), optimizer_only=True),
    # ZeRO stage 3: parameters are gathered where they are used
    "fsdp": LayoutEntry({"fsdp": None}, batch=("fsdp",)),
    "tp": LayoutEntry({"data": None, "model": 8}, batch=("data",)),
    "fsdp_tp": LayoutEntry({"fsdp": None, "model": 2}, batch=("fsdp",)),
    # replicas of FSDP groups; across slices where there are several
    "hsdp": LayoutEntry({"data": 2, "fsdp": None}, batch=("data", "fsdp")),
    # long context: each device has some positions of an example
    "sp": LayoutEntry({"data": None, "seq": 2}, batch=("data",), positions="seq"),
}


@dataclass(frozen=True)
class Layout:
    """A row of the table on a mesh of devices."""

    name: str
    mesh: Mesh

    @property
    def row(self) -> LayoutEntry:
        """What the table says of it."""
        return LAYOUTS[self.name]

    @property
    def axis(self) -> str | None:
        """The name that jax.pmap gives to the devices; None under jax.jit."""
        return self.row.batch[0] if self.row.mapped else None

    @property
    def replicas(self) -> tuple[str, ...]:
        """Axes of several devices, each with examples of its own and the same parameters."""
        whole = self.row.optimizer_only
        axes = (axis for axis in self.row.batch if whole or axis not in _SPLITTING)
        return tuple(axis for axis in axes if self.mesh.shape[axis] > 1)

    @property
    def replicated(self) -> NamedSharding:
        """Every device holds the whole array."""
        return NamedSharding(self.mesh, P())

    @property
    def by_example(self) -> NamedSharding:
        """Of arrays whose first axis is the example."""
        return NamedSharding(self.mesh, P(self.row.batch))

    def size(self, *axes: str | None) -> int:
        """The number of devices along these axes of the mesh, those of None left out."""
        return math.prod(self.mesh.shape[axis] for axis in axes if axis)

    def param_shardings(self, params: Any) -> Any:
        """A sharding for each leaf of an (abstract) parameter tree.

        Raises:
          UserError: a parameter does not split over its axis.
        """
        if self.row.optimizer_only:
            return jax.tree.map(lambda _: self.replicated, params)
        return self.places(params)

    def state_shardings(self, state: Any) -> Any:
        """A sharding for each leaf of an (abstract) train state.

        Raises:
          UserError: a parameter does not split over its axis.
        """
        return dataclasses.replace(self.places(state), params=self.param_shardings(state.params))

    def places(self, tree: Any) -> Any:
        """The sharding that PLACES gives to each leaf, of a tree that holds parameters somewhere.

        Raises:
          UserError: a parameter does not split over its axis.
        """
        return jax.tree_util.tree_map_with_path(self._place, tree)

    def rows(self, size: int) -> tuple[int, ...]:
        """The rows of a global batch of this size that devices of this process hold."""
        found: set[int] = set()
        for (rows,) in self.by_example.addressable_devices_indices_map((size,)).values():
            found |= set(range(*rows.indices(size)))
        return tuple(sorted(found))

    def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """The `rows(B)` of this process -> global arrays [B, ...] spread over the mesh."""

        def put(values: np.ndarray) -> Array:
            size = self._global_size(len(values))
            at = {row: i for i, row in enumerate(self.rows(size))}

            def share(index: tuple[slice, ...]) -> np.ndarray:
                first, last, _ = index[0].indices(size)
                return values[at[first] : at[last - 1] + 1]

            shape = (size, *values.shape[1:])
            return jax.make_array_from_callback(shape, self.by_example, share)

        return {name: put(values) for name, values in batch.items()}

    def put_train_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, Array]:
        """The same for `program`: [devices, B / devices, ...] where jax.pmap runs the step."""
        if not self.row.mapped:
            return self.put_batch(batch)
        each = self._global_size(len(next(iter(batch.values())))) // self.mesh.size
        return self.put_batch({k: x.reshape(-1, each, *x.shape[1:]) for k, x in batch.items()})

    def check_batch(self, size: int, field: str) -> None:
        """Raises UserError unless a global batch of this size splits over the devices."""
        shards = self.size(*self.row.batch)
        if size % shards:
            raise UserError(
                f"{field}={size} does not split over {shards} devices: make it a multiple of "
                f"{shards}."
            )

    def sum_gradients(self, gradients: Any, dtype: DTypeLike) -> Any:
        """The gradients of a device's examples -> those of all, within a step's program.

        Under jax.jit they are global arrays, summed where the compiler sees fit, in the type that
        they were computed in, and here split like the optimizer state, so that each device sums
        up the part that it needs. Under jax.pmap they are summed here, in dtype.
        """
        if not self.row.mapped:
            return jax.lax.with_sharding_constraint(gradients, self.places(gradients))
        return jax.tree.map(lambda x: total(x, P(), (self.axis,), dtype), gradients)

    def sums_per_replica(self, microbatches: int) -> bool:
        """Whether a step takes `sum_per_replica`; otherwise the compiler sums where it sees fit.

        That is in every turn of a loop: over micro-batches, or over chunks of logits. But where
        there are axes beside the replicas it gathers more activations apart, to differentiate the
        embedding: a loss with whole batches.
        """
        if self.row.mapped or not self.replicas:
            return False
        return microbatches > 1 or self.size(*self.replicas) == self.mesh.size

    def sum_per_replica(
        self, gradients: Callable[..., tuple[Any, Any]], dtype: DTypeLike
    ) -> Callable[..., tuple[Any, Any]]:
        """gradients(params, examples) -> (gradients, metrics), sums over examples: the same, where
        each of the `replicas` sums up its own, and they are added once, in dtype.

        examples: a tree of [B, ...]; global here, and within the examples of a replica.
        """

        def of_replica(params: Any, examples: Any) -> tuple[Any, Any]:
            grads, metrics = gradients(params, examples)
            grads = jax.tree.map(
                lambda x, place: total(x, place, self.replicas, dtype), grads, specs(params)
            )
            return grads, jax.lax.psum(metrics, self.replicas)

        def specs(params: Any) -> Any:
            """Where gradients go along the replicas: like the optimizer state."""
            return jax.tree.map(lambda x: only(x.spec, self.replicas), self.places(params))

        def summed(params: Any, examples: Any) -> tuple[Any, Any]:
            grads, metrics = jax.shard_map(
                of_replica,
                mesh=self.mesh,
                in_specs=(P(), P(self.replicas)),
                out_specs=(specs(params), P()),
                axis_names=set(self.replicas),
                check_vma=False,
            )(params, examples)
            return jax.lax.with_sharding_constraint(grads, self.places(grads)), metrics

        return summed

    def program(self, step: Callable, state: Any) -> Any:
        """step(state, batch) -> (state, metrics), to be lowered, compiled and run on global arrays.

        state: (abstract) train state, donated. batch: of `put_train_batch`. Metrics lie on every
        device. jax.pmap takes global arrays only as `lower(state, batch).compile()`.
        """
        if self.row.mapped:
            devices = list(self.mesh.devices.flat)
            return jax.pmap(
                step,
                self.axis,
                in_axes=(None, 0),
                out_axes=None,
                devices=devices,
                donate_argnums=0,
            )
        shardings = self.state_shardings(state)
        return jax.jit(
            step,
            in_shardings=(shardings, self.by_example),
            out_shardings=(shardings, self.replicated),
            donate_argnums=0,
        )

    def _global_size(self, own: int) -> int:
        shards = self.size(*self.row.batch)
        return own * shards // len(self.rows(shards))

    def _place(self, path: Sequence[Any], leaf: Any) -> NamedSharding:
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

    def spec(self, name: str) -> P:
        """What PLACES says of the parameter of this path."""
        spec = next((spec for pattern, spec in PARTITION_RULES if re.search(pattern, name)), P())
        return P(*(axis if axis in self.mesh.shape else None for axis in spec))


def make_layout(config: LayoutConfig, devices: Sequence[jax.Device]) -> Layout:
    """The layout of a config on these devices, which must be all that take part.

    Raises:
      UserError: there is no such layout, an axis that it does not have, or sizes that do not
        multiply to the number of devices.
    """
    row = lookup(LAYOUTS, config.name, "config.layout.name")
    sizes = _axis_sizes(config, row, len(devices))
    if row.mapped:  # the order of jax.pmap
        devices = sorted(devices, key=lambda d: (d.process_index, d.id))
        return Layout(config.name, Mesh(np.array(devices), tuple(sizes)))
    return Layout(config.name, Mesh(_arranged(tuple(sizes.values()), devices), tuple(sizes)))


def dp(devices: Sequence[jax.Device]) -> Layout:
    """Data parallelism over these devices."""
    return make_layout(LayoutConfig("dp"), devices)


def local_dp(batch_size: int) -> Layout:
    """Data parallelism over as many local devices as divide a batch of this size."""
    return dp(jax.local_devices()[: math.gcd(batch_size, jax.local_device_count())])


def _arranged(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Neighbours in the mesh are neighbours in the network; the first axis crosses slices."""
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if slices == 1 or shape[0] % slices:
        # a small axis may take a part of a dimension of the torus
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    within = (shape[0] // slices, *shape[1:])
    across = (slices, *(1 for _ in shape[1:]))
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )


def _axis_sizes(config: LayoutConfig, row: LayoutEntry, devices: int) -> dict[str, int]:
    given = _parse_axes(config, row)
    sizes = dict(given)
    left = devices // math.prod(given.values())
    for name in sorted(row.axes.keys() - given.keys(), key=lambda name: row.axes[name] is None):
        most = left if row.axes[name] is None or len(sizes) == len(row.axes) - 1 else row.axes[name]
        sizes[name] = max(n for n in range(1, min(most, left) + 1) if left % n == 0)
        left //= sizes[name]
    if math.prod(sizes.values()) != devices:
        raise UserError(
            f"config.layout.axes={config.axes!r} does not fit {devices} devices: the sizes of "
            f"{', '.join(row.axes)} must multiply to {devices}; leave one of them out and it "
            "follows, if the others divide that."
        )
    return {name: sizes[name] for name in row.axes}


def _parse_axes(config: LayoutConfig, row: LayoutEntry) -> dict[str, int]:
    given = {}
    for part in filter(None, config.axes.split(",")):
        name, _, size = part.partition("=")
        if name not in row.axes or not size.isdigit() or not int(size):
            raise UserError(
                f"config.layout.axes={config.axes!r} does not fit config.layout.name="
                f"{config.name!r}, whose axes are {', '.join(row.axes)}: give sizes of at least 1, "
                f"such as {next(iter(row.axes))}=4, with commas between them."
            )
        given[name] = int(size)
    return given
