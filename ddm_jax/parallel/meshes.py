"""The mesh of a layout: how many devices lie along each axis, and which."""

import math
from collections.abc import Collection, Mapping, Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils

from ddm_jax.config import LayoutConfig
from ddm_jax.errors import UserError
from ddm_jax.wording import counted


def axis_sizes(
    config: LayoutConfig, defaults: Mapping[str, int | None], devices: int
) -> dict[str, int]:
    """The size of every axis of a layout's mesh.

    Args:
      config: its `axes` gives the sizes of some.
      defaults: every axis with the largest size that it takes by default; that with None takes the
        devices that are left.
      devices: number of devices.

    Returns:
      axis -> size, in the order of `defaults`.

    Raises:
      UserError: config.axes names another axis, or the sizes do not multiply to `devices`.
    """
    sizes = _parse_axes(config, defaults)
    left = devices // math.prod(sizes.values())
    others = sorted(defaults.keys() - sizes.keys(), key=lambda name: defaults[name] is None)
    for name in others:
        default = defaults[name]
        # the last one takes the devices that are left
        most = left if default is None or name == others[-1] else min(default, left)
        sizes[name] = max((n for n in range(1, most + 1) if left % n == 0), default=1)
        left //= sizes[name]
    if math.prod(sizes.values()) != devices:
        raise UserError(
            f"config.layout.axes={config.axes!r} does not fit {counted(devices, 'device')}: the "
            f"sizes of {', '.join(defaults)} must multiply to {devices}; leave one of them out and "
            "it follows, if the others divide that."
        )
    return {name: sizes[name] for name in defaults}


def _parse_axes(config: LayoutConfig, names: Collection[str]) -> dict[str, int]:
    """config.layout.axes, such as "data=2,fsdp=4", as a dict."""
    given = {}
    for part in filter(None, config.axes.split(",")):
        name, _, size = part.partition("=")
        if name not in names or not size.isdigit() or not int(size):
            raise UserError(
                f"config.layout.axes={config.axes!r} does not fit config.layout.name="
                f"{config.name!r}, whose axes are {', '.join(names)}: give sizes of at least "
                f"1, such as {next(iter(names))}=4, with commas between them."
            )
        given[name] = int(size)
    return given


def device_array(shape: tuple[int, ...], devices: Sequence[jax.Device]) -> np.ndarray:
    """Devices in the shape of a mesh, so that neighbours in it are neighbours in the network.

    The first axis crosses slices where there are several.
    """
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    if slices == 1 or shape[0] % slices:
        # a small axis may take a part of a dimension of the torus
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    within = (shape[0] // slices, *shape[1:])
    across = (slices, *(1 for _ in shape[1:]))
    return mesh_utils.create_hybrid_device_mesh(
        within, across, devices, allow_split_physical_axes=True
    )
