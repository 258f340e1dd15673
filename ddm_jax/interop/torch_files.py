"""Reads and writes what torch pickles; needs torch.

A pickle is read without running the code that it names: everything except tensors and plain data
becomes an empty object.
"""

import pickle
import re
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.errors import UserError, how_to_install

_STORAGE_TYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "uint8",
    "bool",
)


def read_torch(path: Path) -> Any:
    """Reads what torch.save wrote, on the CPU; tensors stay in the file until they are used.

    Raises:
      UserError: torch is not installed, or cannot read the file.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"Reading {path} needs torch: {how_to_install('torch')}, or convert the file "
            "to safetensors on a machine that has torch."
        ) from error
    plain = {"weights_only": False, "pickle_module": _plain_pickle()}
    reason: Exception | None = None
    # a file of torch before 1.6 cannot be mapped; one with other objects needs the stand-ins
    attempts: tuple[dict[str, Any], ...] = (
        {"mmap": True},
        {"mmap": False},
        {"mmap": True, **plain},
        plain,
    )
    for options in attempts:
        try:
            return torch.load(path, map_location="cpu", **{"weights_only": True} | options)
        except Exception as error:  # of many classes, some of them torch's own
            reason = error
    first_line = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    raise UserError(
        f"{path} cannot be read by torch ({first_line}): give a checkpoint of the release."
    )


def write_lightning(
    path: Path, tensors: Mapping[str, np.ndarray], buffers: str, decay: float, step: int
) -> None:
    """Writes float32 tensors as a Lightning checkpoint whose averages are its weights.

    The file has what on_load_checkpoint of MDLM, BD3-LM and Duo reads: the averages without names,
    in the order of the network's parameters, and how far training was.

    Args:
      path: the file, not written atomically.
      tensors: name -> array, in the order of the network's parameters.
      buffers: pattern of the names of tensors that are not parameters.
      decay: decay of the average.
      step: number of updates of the average.

    Raises:
      UserError: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"Writing {path} needs torch: {how_to_install('torch')}, or give a folder."
        ) from error
    writeable = {name: x if x.flags.writeable else x.copy() for name, x in tensors.items()}
    state = {name: torch.from_numpy(x) for name, x in writeable.items()}
    average = [x for name, x in state.items() if not re.fullmatch(buffers, name)]
    progress = {"epoch_progress": 0, "epoch_loop.batch_progress": step}
    loop = {name: {"current": {"completed": n}} for name, n in progress.items()}
    record = {
        "state_dict": state,
        "ema": {"decay": decay, "num_updates": step, "shadow_params": average},
        "epoch": 0,
        "global_step": step,
        "loops": {"fit_loop": loop},
        "pytorch-lightning_version": "2.2.1",  # the version in MDLM's requirements
    }
    torch.save(record, path)


_ALLOWED = {
    "collections": ("OrderedDict",),
    "torch": ("Size", "device"),
    "torch._utils": ("_rebuild_tensor_v2", "_rebuild_parameter"),
}


class _PlainUnpickler(pickle.Unpickler):
    """Makes tensors and plain data, and an empty object in place of anything else."""

    def find_class(self, module: str, name: str) -> Any:
        is_storage = module == "torch" and (name.endswith("Storage") or name in _STORAGE_TYPES)
        if is_storage or name in _ALLOWED.get(module, ()):
            return super().find_class(module, name)
        return type(name, (_Empty,), {})


class _Empty(dict):
    """Accepts what a pickle does to an object, and keeps nothing."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """Does nothing, where a list would append."""

    def extend(self, _: Any) -> None:
        """Does nothing, where a list would extend."""


def _plain_pickle() -> types.ModuleType:
    """Returns a module with the parts of `pickle` that torch.load uses, and `_PlainUnpickler`."""
    module = types.ModuleType("plain_pickle")
    parts = {
        "Unpickler": _PlainUnpickler,
        "load": None,
        "UnpicklingError": pickle.UnpicklingError,
    }
    vars(module).update(parts)
    return module
