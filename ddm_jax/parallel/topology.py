"""Devices of machines that are not here, for the compiler that comes with libtpu."""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from ddm_jax.config import lookup
from ddm_jax.errors import UserError
from ddm_jax.parallel.chips import CHIPS, Chip
from ddm_jax.parallel.roofline import Place


def tpu_devices(name: str, slices: int = 1) -> tuple[Chip, list[Any]]:
    """The chip of a topology such as "v5e:16x16", and all devices of so many slices of it.

    To be called before jax has looked for devices: it must not take a TPU that is here.

    Raises:
      UserError: libtpu is not installed, or there is no such topology.
    """
    kind, _, shape = name.partition(":")
    sizes = [int(n) for n in shape.split("x")] if re.fullmatch(r"\d+(x\d+){1,2}", shape) else []
    if not sizes or not math.prod(sizes):
        raise UserError(
            f"--topology={name!r} is not the name of TPUs: give a chip and the shape of its slice, "
            f"such as v5e:4x4 or v5p:2x2x2; chips are {', '.join(CHIPS)}; other machines cannot be "
            "compiled for."
        )
    chip = lookup(CHIPS, kind, "the chip of --topology")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            'The compiler for TPUs is not installed: `pip install "jax[tpu]"` (some 200 MB; it '
            "needs no TPU)."
        )
    jax.config.update("jax_platforms", "cpu")
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


def places(devices: Sequence[Any]) -> list[Place]:
    """Where devices of a topology are."""
    return [Place(getattr(d, "slice_index", None) or 0, tuple(d.coords)) for d in devices]
