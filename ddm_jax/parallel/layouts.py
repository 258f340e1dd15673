"""How a run is spread over devices: a mesh, where the state lies, and how a batch is split.

The model knows none of it; a layout changes speed and memory, never the numbers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ddm_jax.errors import UserError


@dataclass(frozen=True)
class Layout:
    """A mesh with the place of everything on it."""

    mesh: Mesh
    batch: P  # of arrays whose first axis is the example

    @property
    def replicated(self) -> NamedSharding:
        """Every device holds the whole array."""
        return NamedSharding(self.mesh, P())

    def state_shardings(self, state: Any) -> Any:
        """A sharding for each leaf of an (abstract) train state or parameter tree."""
        return jax.tree.map(lambda _: self.replicated, state)

    def put_batch(self, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """This process's rows [b, ...] -> global arrays [B, ...] spread over the mesh."""
        sharding = NamedSharding(self.mesh, self.batch)
        return {
            name: jax.make_array_from_process_local_data(sharding, rows)
            for name, rows in batch.items()
        }

    def check_batch(self, size: int, field: str) -> None:
        """Raises UserError unless a global batch of this size splits over the devices."""
        shards = int(np.prod([self.mesh.shape[axis] for axis in self.batch]))
        if size % shards:
            raise UserError(
                f"{field}={size} does not split over {shards} devices: make it a multiple of "
                f"{shards}."
            )


def dp(devices: list[jax.Device]) -> Layout:
    """Data parallelism: the state on every device, the batch split among them."""
    return Layout(Mesh(np.array(devices), ("data",)), P("data"))


LAYOUTS: dict[str, Callable[[list[jax.Device]], Layout]] = {"dp": dp}
