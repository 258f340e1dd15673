"""Reads and writes the files of published weights: safetensors, and what torch pickles.

A hub folder has config.json with model.safetensors, or several such files and their index, or
pytorch_model.bin; a run of SEDD or RADD has checkpoints-meta/checkpoint.pth, {"model", "ema",
"step", ...}; a run of MDLM, BD3-LM or Duo a Lightning .ckpt, {"state_dict", "ema", "global_step",
...}. An "ema" holds "shadow_params", the averaged parameters in the order of the network's own.
safetensors needs no torch. A pickle is read without running what it names: what is neither a tensor
nor plain data is passed over.
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
from ddm_jax.interop.safetensors import SHARDS, SafeTensors, Sharded, places_of

SAFE = "model.safetensors"
LIGHTNING = ".ckpt"
OF_A_HUB = (SAFE, SHARDS, "pytorch_model.bin")
PLACES = (*OF_A_HUB, "checkpoints-meta/checkpoint.pth", "checkpoints/last.ckpt", "last.ckpt")
EXTRA = "pip install 'ddm_jax[torch]'"
# in front of the names: of wrappers, and of the network in what holds it
PREFIXES = ("module.", "_orig_mod.", "backbone.", "transformer.")


@dataclass(frozen=True)
class Published:
    """A checkpoint: its file with sha256, name -> array without prefixes, its step, whose weights.

    path: of several files their index, and sha256 that of it and all of them, one after another.
    weights: "ema", "last", or "" where there is one set alone, as on the hub.
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
    if path.name == SHARDS:
        found = Sharded(path)
        return Published(path, _sha256([path, *found.paths]), Bare(found), 0, "")
    sha256 = _sha256([path])
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


def write_lightning(
    path: Path, tensors: Mapping[str, np.ndarray], buffers: str, decay: float, step: int
) -> None:
    """Writes float32 tensors as a Lightning checkpoint whose averages are its weights.

    With what MDLM's, BD3-LM's and Duo's on_load_checkpoint read of it: the averages without names,
    in the order of the network's parameters, and how far training was.

    Args:
      path: renamed by the caller.
      tensors: in that order, those that are no parameters aside.
      buffers: pattern of the names of these.
      decay, step: of the average, and how many updates it has had.

    Raises:
      UserError: torch is missing.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(f"Writing {path} needs torch: {EXTRA}, or give a folder.") from error
    own = {name: x if x.flags.writeable else x.copy() for name, x in tensors.items()}
    state = {name: torch.from_numpy(x) for name, x in own.items()}
    average = [x for name, x in state.items() if not re.fullmatch(buffers, name)]
    progress = {"epoch_progress": 0, "epoch_loop.batch_progress": step}
    loop = {name: {"current": {"completed": n}} for name, n in progress.items()}
    record = {
        "state_dict": state,
        "ema": {"decay": decay, "num_updates": step, "shadow_params": average},
        "epoch": 0,
        "global_step": step,
        "loops": {"fit_loop": loop},
        "pytorch-lightning_version": "2.2.1",  # that of MDLM's requirements
    }
    torch.save(record, path)


class Bare(Mapping):
    """Names without the prefixes of what holds the network.

    Raises:
      UserError: two of them are then the same.
    """

    def __init__(self, tensors: Mapping[str, Any]):
        self._tensors, self._names = tensors, {}
        for name in tensors:
            if (other := self._names.setdefault(_bare(name), name)) != name:
                raise UserError(
                    f"The checkpoint has the tensors {other} and {name}, of which the network has "
                    "one: leave the other out."
                )

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


def _sha256(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


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
    for place in OF_A_HUB:
        try:
            path = Path(hf_hub_download(name, place))
            for file in sorted(set(places_of(path).values())) if place == SHARDS else ():
                hf_hub_download(name, file)
            return path
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
