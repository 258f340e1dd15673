"""Where every parameter lies under a layout, and how many bytes of it all a device holds."""

import math
from typing import Any

import jax
from jax.sharding import NamedSharding

from ddm_jax.parallel.layouts import Layout

MIB = 2**20


def device_bytes(tree: Any, shardings: Any) -> int:
    """Bytes of an (abstract) tree on each device; `shardings` splits every leaf evenly."""

    def of_leaf(x: Any, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(of_leaf, tree, shardings)))


def summary(layout: Layout, state: Any) -> str:
    """One line on an (abstract) train state: the mesh, and bytes on a device of all there are."""
    held = device_bytes(state, layout.state_shardings(state))
    whole = device_bytes(state, jax.tree.map(lambda _: layout.replicated, state))
    mesh = " x ".join(f"{axis}={size}" for axis, size in layout.mesh.shape.items())
    return (
        f"Layout {layout.name}, mesh {mesh}: a device holds {held / MIB:,.1f} of "
        f"{whole / MIB:,.1f} MiB of parameters, average and optimizer state"
    )


def table(layout: Layout, state: Any) -> str:
    """The summary and, for each parameter of an (abstract) train state, its shape, the mesh axes
    that its dimensions are split over, and its bytes on a device in parameters, average and
    optimizer state together.
    """
    shardings = layout.param_shardings(state.params), layout.places(state.params)
    copies = _copies(state)
    rows = [("parameter", "shape", "parameters", "average, optimizer", "MiB a device")]
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    for (path, x), here, there in zip(leaves, *map(jax.tree.leaves, shardings), strict=True):
        held = device_bytes(x, here) + (copies - 1) * device_bytes(x, there)
        name = "/".join(key.key for key in path)
        rows.append(
            (name, "x".join(map(str, x.shape)), _axes(here), _axes(there), f"{held / MIB:,.2f}")
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (
        "  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    return "\n".join([summary(layout, state), "", *lines])


def _copies(state: Any) -> int:
    """How often the state holds an array for each parameter."""
    number = len(jax.tree.leaves(state.params))
    big = [x for x in jax.tree.leaves(state) if x.ndim]
    return len(big) // number


def _axes(sharding: NamedSharding) -> str:
    spec = tuple(sharding.spec)
    return "whole" if not any(spec) else ", ".join(axis or "-" for axis in spec)
