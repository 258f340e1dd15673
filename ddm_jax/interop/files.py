"""Reads and writes the files of published weights: safetensors, and what torch pickles.

A hub folder has config.json with model.safetensors or pytorch_model.bin; a run of SEDD or RADD
checkpoints-meta/checkpoint.pth, {"model", "ema", "step", ...}; a run of MDLM, BD3-LM or Duo a
Lightning .ckpt, {"state_dict", "ema", "global_step", ...}. An "ema" holds "shadow_params", the
averaged parameters in the order of the network's own. safetensors needs no torch. A pickle is read
without running what it names: what is neither a tensor nor plain data is passed over.
"""

import hashlib
import pickle
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.errors import UserError
from ddm_jax.evaluation.pretrained import SafeTensors

SAFE = "model.safetensors"
PLACES = (SAFE, "pytorch_model.bin", "checkpoints-meta/checkpoint.pth")
PLACES += ("checkpoints/last.ckpt", "last.ckpt")
EXTRA = "pip install 'ddm_jax[torch]'"
# in front of the names: of wrappers, and of the network in what holds it
PREFIXES = ("module.", "_orig_mod.", "backbone.", "transformer.")


@dataclass(frozen=True)
class Published:
    """A checkpoint: its file with sha256, name -> array without prefixes, its step, whose weights.

    weights: "ema", "last", or "" where the file has one set alone, as those of the hub have.
    """

    path: Path
    sha256: str
    tensors: Mapping[str, np.ndarray]
    step: int
    weights: str


def open_published(where: str, weights: str, buffers: str) -> Published:
    """A file, a folder, or OWNER/NAME of a hub.

    weights: "ema" or "last", where the file has both. buffers: pattern of the names that are no
    parameters, which an average leaves out.

    Raises:
      UserError: there is no such thing, it cannot be read, or a package is missing.
    """
    path = _file(where)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    if path.suffix == ".safetensors":
        return Published(path, sha256, Bare(SafeTensors(path)), 0, "")
    record = read_pickle(path)
    state = next((record[k] for k in ("model", "state_dict") if k in record), record)
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds no state_dict: give a checkpoint of the release.")
    state = {k: v for k, v in Bare(state).items() if hasattr(v, "shape")}
    average = record.get("ema") if state is not record else None
    if average and weights == "ema":
        state = _averaged(path, state, average["shadow_params"], buffers)
    step = record.get("global_step", record.get("step", 0)) if average else 0
    return Published(path, sha256, _Arrays(state), int(step), weights if average else "")


def read_pickle(path: Path) -> Any:
    """What torch.save wrote, on the CPU; tensors stay in the file until they are read.

    Raises:
      UserError: torch is missing, or the file is none of its.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"Reading {path} needs torch: {EXTRA}, or convert it to safetensors where torch is."
        ) from error
    plain = {"weights_only": False, "pickle_module": _plain_pickle()}
    reason: Exception | None = None
    # one of torch before 1.6 cannot be mapped; one with other objects needs the stand-ins
    for options in ({"mmap": True}, {"mmap": False}, {"mmap": True, **plain}, plain):
        try:
            return torch.load(path, map_location="cpu", **{"weights_only": True} | options)
        except Exception as error:  # of many classes, some of them torch's own
            reason = error
    said = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    raise UserError(f"{path} cannot be read by torch ({said}): give a checkpoint of the release.")


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes float32 tensors; the folder is renamed by the caller.

    Raises:
      UserError: safetensors is missing.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise UserError(
            f"Writing {path} needs safetensors: pip install 'ddm_jax[judge]'."
        ) from error
    save_file(dict(tensors), path, metadata={"format": "pt"})


class Bare(Mapping):
    """Names without the prefixes of what holds the network."""

    def __init__(self, tensors: Mapping[str, Any]):
        self._tensors, self._names = tensors, {_bare(name): name for name in tensors}

    def __getitem__(self, name: str) -> Any:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Arrays(Bare):
    """Tensors of torch, as float32 arrays when they are asked for."""

    def __getitem__(self, name: str) -> np.ndarray:
        return super().__getitem__(name).detach().float().numpy()


def _bare(name: str) -> str:
    while prefix := next((p for p in PREFIXES if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return name


def _averaged(
    path: Path, state: Mapping[str, Any], shadow: Sequence[Any], buffers: str
) -> dict[str, Any]:
    """The averages by name: they are in the order of the parameters, and so of the state."""
    names = [name for name in state if not re.fullmatch(buffers, name)]
    if len(names) != len(shadow):
        raise UserError(
            f"{path} has {len(shadow)} averaged tensors for {len(names)} parameters: take the "
            "others with --weights=last."
        )
    for name, x in zip(names, shadow, strict=True):
        if tuple(x.shape) != tuple(state[name].shape):
            raise UserError(
                f"{path} has an average of shape {tuple(x.shape)} where the tensor {name} has "
                f"{tuple(state[name].shape)}: take the others with --weights=last."
            )
    return dict(zip(names, shadow, strict=True))


def _file(where: str) -> Path:
    path = Path(where).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for place in PLACES:
            if (path / place).is_file():
                return path / place
        raise UserError(f"--checkpoint={where} has none of {', '.join(PLACES)}: give the file.")
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", where):
        return _downloaded(where)
    raise UserError(
        f"--checkpoint={where} is not there: give a file, a folder, or OWNER/NAME of a hub."
    )


def _downloaded(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise UserError(
            f"--checkpoint={name} is no folder here, and the hub needs huggingface_hub: pip "
            "install 'ddm_jax[hub]', or give a folder."
        ) from error
    reason: Exception | None = None
    for place in PLACES[:2]:
        try:
            return Path(hf_hub_download(name, place))
        except Exception as error:  # offline, no such name, no such file: each of its own class
            reason = error
    said = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    raise UserError(
        f"--checkpoint={name} is no folder here and cannot be had from the hub ({said}): download "
        "it where there is a connection, and give its folder."
    )


def _plain_pickle() -> Any:
    """A `pickle` that makes tensors and plain data, and of all else an empty stand-in."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            known = {"collections": ("OrderedDict",), "torch": ("Size", "device")}
            known["torch._utils"] = ("_rebuild_tensor_v2", "_rebuild_parameter")
            storage = module == "torch" and (name.endswith("Storage") or name in _DTYPES)
            if storage or name in known.get(module, ()):
                return super().find_class(module, name)
            return type(name, (_StandIn,), {})

    plain = types.ModuleType("plain_pickle")
    plain.Unpickler, plain.load, plain.UnpicklingError = Unpickler, None, pickle.UnpicklingError
    return plain


_DTYPES = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")


class _StandIn(dict):
    """Takes whatever a pickle does to an object, and keeps nothing."""

    def __init__(self, *_: Any, **__: Any):
        super().__init__()

    def __setstate__(self, _: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """As a list would."""

    def extend(self, _: Any) -> None:
        """As a list would."""
