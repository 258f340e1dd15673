"""Devices of machines that are not here, for a compiler that needs none."""

import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from ddm_jax.config import lookup
from ddm_jax.costs.chips import CHIPS, Chip
from ddm_jax.costs.roofline import Place
from ddm_jax.errors import UserError

# module, extra of jax, size
COMPILERS = {
    "tpu": ("libtpu", "tpu", "some 200 MB"),
    "gpu": ("jax_cuda13_plugin", "cuda13", "some GB"),
}


def devices_of(name: str, slices: int = 1) -> tuple[Chip, list[Any]]:
    """The chip of a topology such as "v5e:16x16" or "h200:8", and all devices of so many of it.

    Slices of TPUs, nodes of GPUs. To be called before jax has looked for devices: it must not take
    those that are here.

    Raises:
      UserError: the compiler is not installed, or there is no such topology.
    """
    kind, _, shape = name.partition(":")
    sizes = [int(n) for n in shape.split("x")] if re.fullmatch(r"\d+(x\d+){0,2}", shape) else []
    dimensions = (1,) if kind in CHIPS and CHIPS[kind].target else (2, 3)
    if len(sizes) not in dimensions or not math.prod(sizes):
        raise UserError(
            f"--topology={name!r} names no machine: give a TPU and the shape of its slice, such as "
            "v5e:4x4 or v5p:2x2x2, or a GPU and how many a node has, such as h200:8; chips are "
            f"{', '.join(CHIPS)}."
        )
    chip = lookup(CHIPS, kind, "the chip of --topology")
    package, extra, size = COMPILERS["gpu" if chip.target else "tpu"]
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f'The compiler for {kind} is not installed: `pip install "jax[{extra}]"` ({size}; it '
            "needs no such machine)."
        )
    jax.config.update("jax_platforms", "cpu")
    if chip.target:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        shape = f"{slices}x1x{sizes[0]}"
        found = topologies.get_topology_desc(
            platform="cuda", target_config=chip.target, topology=shape
        )
        return chip, list(found.devices)
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # another process may be compiling too
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not ask where in a cloud this is
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    options: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}
    if math.prod(sizes) == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if slices > 1:
        options["num_slices"] = slices
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"--topology={name!r} is no slice of {kind} ({reason}): give a shape that exists, such "
            f"as {kind}:{'4x4' if CHIPS[kind].ring == 16 else '2x2x2'}."
        ) from error
    return chip, list(found.devices)


def compiler(name: str) -> str:
    """What compiles for a topology, with its version."""
    package = COMPILERS["gpu" if CHIPS[name.partition(":")[0]].target else "tpu"][0]
    package = package.replace("_", "-")
    return f"{package} {importlib.metadata.version(package)}"


def places(devices: Sequence[Any]) -> list[Place]:
    """Where devices of a topology are."""
    if devices[0].platform == "gpu":  # node, process of the node, GPU of the process
        return [Place(node, (gpu,)) for node, _, gpu in (d.coords for d in devices)]
    return [Place(getattr(d, "slice_index", None) or 0, tuple(d.coords)) for d in devices]
