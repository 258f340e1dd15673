"""Devices of machines that need not be present, for a compiler that does not need them either."""

import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from ddm_jax.config import lookup
from ddm_jax.costs.chips import CHIPS, Chip
from ddm_jax.costs.roofline import Place
from ddm_jax.errors import UserError


@dataclass(frozen=True)
class CompilerPackage:
    """The package that has a compiler: its module, the extra of jax, and the download's size."""

    module: str
    extra: str
    size: str


_TPU_COMPILER = CompilerPackage("libtpu", "tpu", "about 200 MB")
_GPU_COMPILER = CompilerPackage("jax_cuda13_plugin", "cuda13", "several GB")


def devices_of(name: str, slices: int = 1) -> tuple[Chip, list[jax.Device]]:
    """The chip of a topology, and the abstract devices of `slices` such topologies.

    Call it before jax looks for devices: it must not take those of this machine.

    Args:
      name: such as "v5e:16x16" or "h200:8".
      slices: slices of TPUs, nodes of GPUs.

    Raises:
      UserError: the compiler is not installed, or the topology does not exist.
    """
    kind, _, shape = name.partition(":")
    sizes = [int(n) for n in shape.split("x")] if re.fullmatch(r"\d+(x\d+){0,2}", shape) else []
    dimensions = (1,) if kind in CHIPS and CHIPS[kind].target else (2, 3)
    if len(sizes) not in dimensions or not math.prod(sizes):
        raise UserError(
            f"--topology={name!r} is not a machine: give a TPU with the shape of its slice, such "
            "as v5e:4x4 or v5p:2x2x2, or a GPU with the number in a node, such as h200:8; chips "
            f"are {', '.join(CHIPS)}."
        )
    chip = lookup(CHIPS, kind, "the chip of --topology")
    package = _compiler_package(chip)
    if importlib.util.find_spec(package.module) is None:
        raise UserError(
            f"The compiler for {kind} is not installed: run `pip install "
            f'"jax[{package.extra}]"` ({package.size}; it does not need a {kind}).'
        )
    jax.config.update("jax_platforms", "cpu")
    if chip.target:
        return chip, _gpu_devices(chip, nodes=slices, gpus=sizes[0])
    return chip, _tpu_devices(name, kind, chips=math.prod(sizes), slices=slices)


def _gpu_devices(chip: Chip, nodes: int, gpus: int) -> list[jax.Device]:
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    found = topologies.get_topology_desc(
        platform="cuda", target_config=chip.target, topology=f"{nodes}x1x{gpus}"
    )
    return list(found.devices)


def _tpu_devices(name: str, kind: str, chips: int, slices: int) -> list[jax.Device]:
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # another process may be compiling too
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not ask a cloud where this machine is
    os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")
    options: dict[str, Any] = {"chip_config_name": "megacore"} if kind == "v4" else {}
    if chips == 1:
        options["chips_per_host_bounds"] = (1, 1, 1)
    if slices > 1:
        options["num_slices"] = slices
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(
            f"--topology={name!r} is not a slice of {kind} ({reason}): give a shape that exists, "
            f"such as {kind}:{'4x4' if CHIPS[kind].ring == 16 else '2x2x2'}."
        ) from error
    return list(found.devices)


def compiler_version(name: str) -> str:
    """The compiler for a topology, with its version, such as "libtpu 0.0.42.1"."""
    module = _compiler_package(CHIPS[name.partition(":")[0]]).module
    package = module.replace("_", "-")
    return f"{package} {importlib.metadata.version(package)}"


def places_of(devices: Iterable[Any]) -> list[Place]:
    """Where the devices of a topology are."""
    return [_place(device) for device in devices]


def _place(device: Any) -> Place:
    if device.platform == "gpu":
        node, _, gpu = device.coords  # node, process of the node, GPU of the process
        return Place(node, (gpu,))
    return Place(getattr(device, "slice_index", None) or 0, tuple(device.coords))


def _compiler_package(chip: Chip) -> CompilerPackage:
    return _GPU_COMPILER if chip.target else _TPU_COMPILER
