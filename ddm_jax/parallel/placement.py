"""Tables of how a layout splits the parameters, and of the bytes that a device holds."""

import math
from typing import Any

import jax
from jax.sharding import NamedSharding

from ddm_jax.parallel.layouts import Layout

MIB = 2**20


def device_bytes(tree: Any, shardings: Any) -> int:
    """Bytes of an (abstract) tree on each device; `shardings` splits every leaf evenly."""

    def leaf_bytes(x: Any, sharding: NamedSharding) -> int:
        return math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(jax.tree.leaves(jax.tree.map(leaf_bytes, tree, shardings)))


def layout_summary(layout: Layout, state: Any) -> str:
    """One line on an (abstract) train state: the mesh, and how many of its bytes a device holds."""
    held = device_bytes(state, layout.state_shardings(state))
    whole = device_bytes(state, jax.tree.map(lambda _: layout.replicated, state))
    mesh = " x ".join(f"{axis}={size}" for axis, size in layout.mesh.shape.items())
    return (
        f"Layout {layout.name}, mesh {mesh}: a device holds {held / MIB:,.1f} of "
        f"{whole / MIB:,.1f} MiB of parameters, average and optimizer state"
    )


def layout_table(layout: Layout, state: Any) -> str:
    """The summary, and a table of the parameters of an (abstract) train state.

    A line of it has the shape of the parameter, the mesh axes that its dimensions are split over,
    likewise for its average and optimizer state, and the bytes of all these on a device.
    """
    param_shardings = jax.tree.leaves(layout.param_shardings(state.params))
    state_shardings = jax.tree.leaves(layout.rule_shardings(state.params))
    copies = _copies(state)
    rows = [("parameter", "shape", "parameters", "average, optimizer", "MiB a device")]
    leaves = jax.tree_util.tree_leaves_with_path(state.params)
    for (path, x), own, others in zip(leaves, param_shardings, state_shardings, strict=True):
        mib = (device_bytes(x, own) + (copies - 1) * device_bytes(x, others)) / MIB
        name = "/".join(key.key for key in path)
        shape = "x".join(map(str, x.shape))
        rows.append((name, shape, _axes(own), _axes(others), f"{mib:,.2f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(x.ljust(w) for x, w in zip(row, widths, strict=True)).rstrip() for row in rows
    )
    return "\n".join([layout_summary(layout, state), "", *lines])


def _copies(state: Any) -> int:
    """How many arrays of its shape the state holds for each parameter."""
    number = len(jax.tree.leaves(state.params))
    return len([x for x in jax.tree.leaves(state) if x.ndim]) // number


def _axes(sharding: NamedSharding) -> str:
    spec = tuple(sharding.spec)
    return "whole" if not any(spec) else ", ".join(axis or "-" for axis in spec)
