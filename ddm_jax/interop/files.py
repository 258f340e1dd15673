"""Finds and opens published weights: a file, a folder, or a name of a hub.

A hub folder has config.json with model.safetensors, or several such files and their index, or
pytorch_model.bin. A run of SEDD or RADD has checkpoints-meta/checkpoint.pth, {"model", "ema",
"step", ...}; a run of MDLM, BD3-LM or Duo has a Lightning .ckpt, {"state_dict", "ema",
"global_step", ...}. An "ema" has "shadow_params", the averaged parameters in the order of the
network's own. safetensors needs no torch.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ddm_jax.errors import UserError, how_to_install
from ddm_jax.interop.safetensors import INDEX_FILE, WEIGHTS_FILE, SafeTensors, read_weight_map
from ddm_jax.interop.torch_files import read_torch

HUB_FILES = (WEIGHTS_FILE, INDEX_FILE, "pytorch_model.bin")
FOLDER_FILES = (
    *HUB_FILES,
    "checkpoints-meta/checkpoint.pth",
    "checkpoints/last.ckpt",
    "last.ckpt",
)
# in front of the names of tensors: of wrappers, and of the network inside a larger module
PREFIXES = ("module.", "_orig_mod.", "backbone.", "transformer.")

T = TypeVar("T")


@dataclass(frozen=True)
class PublishedWeights:
    """An opened checkpoint.

    Attributes:
      path: its file; of several safetensors files, their index.
      sha256: hash (hex) of the file; of several, of the index and all of them, one after another.
      tensors: name without prefixes -> array.
      step: training step; 0 if the checkpoint does not state it.
      weights: "ema" or "last"; "" if the checkpoint has only one set, as on the hub.
    """

    path: Path
    sha256: str
    tensors: Mapping[str, np.ndarray]
    step: int
    weights: str


def open_published(where: str, weights: str, buffers: str) -> PublishedWeights:
    """Opens published weights.

    Args:
      where: a file, a folder, or OWNER/NAME of a hub.
      weights: "ema" or "last", if the file has both.
      buffers: pattern of the names of tensors that are not parameters, which an average leaves out.

    Raises:
      UserError: nothing is there, it cannot be read, or a package is missing.
    """
    path = _find(where)
    if path.name == INDEX_FILE or path.suffix == ".safetensors":
        tensors = SafeTensors(path)
        sha256 = _sha256([path, *tensors.files] if path.name == INDEX_FILE else [path])
        return PublishedWeights(path, sha256, WithoutPrefixes(tensors), 0, "")
    sha256 = _sha256([path])
    record = read_torch(path)
    state = next((record[k] for k in ("model", "state_dict") if k in record), record)
    if not isinstance(state, Mapping):
        raise UserError(f"{path} holds no state_dict: give a checkpoint of the release.")
    state = {k: v for k, v in WithoutPrefixes(state).items() if hasattr(v, "shape")}
    average = record.get("ema") if state is not record else None
    if average and weights == "ema":
        state = _averaged(path, state, average["shadow_params"], buffers)
    step = record.get("global_step", record.get("step", 0)) if average else 0
    return PublishedWeights(
        path, sha256, _TorchArrays(state), int(step), weights if average else ""
    )


class WithoutPrefixes(Mapping[str, T]):
    """A mapping whose names lack the prefixes of the modules that hold the network.

    Raises:
      UserError: two of the names are then the same.
    """

    def __init__(self, tensors: Mapping[str, T]):
        self._tensors = tensors
        self._names: dict[str, str] = {}
        for name in tensors:
            if (other := self._names.setdefault(_without_prefixes(name), name)) != name:
                raise UserError(
                    f"The checkpoint has the tensors {other} and {name}, which are the same tensor "
                    "of the network: leave one out."
                )

    def __getitem__(self, name: str) -> T:
        return self._tensors[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _TorchArrays(Mapping[str, np.ndarray]):
    """Tensors of torch, which become float32 arrays each time they are asked for."""

    def __init__(self, tensors: Mapping[str, Any]):
        self._tensors = tensors

    def __getitem__(self, name: str) -> np.ndarray:
        array: np.ndarray = self._tensors[name].detach().float().numpy()
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _sha256(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def _without_prefixes(name: str) -> str:
    while prefix := next((p for p in PREFIXES if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return name


def _averaged(
    path: Path, state: Mapping[str, Any], shadow: Sequence[Any], buffers: str
) -> dict[str, Any]:
    """Names the averages, which are in the order of the parameters and so of the state."""
    names = [name for name in state if not re.fullmatch(buffers, name)]
    if len(names) != len(shadow):
        raise UserError(
            f"{path} has {len(shadow)} averaged tensors for {len(names)} parameters: use the "
            "weights that are not averaged, with --weights=last."
        )
    for name, x in zip(names, shadow, strict=True):
        if tuple(x.shape) != tuple(state[name].shape):
            raise UserError(
                f"{path} has an average of shape {tuple(x.shape)} for the tensor {name} of shape "
                f"{tuple(state[name].shape)}: use the weights that are not averaged, with "
                "--weights=last."
            )
    return dict(zip(names, shadow, strict=True))


def _find(where: str) -> Path:
    path = Path(where).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in FOLDER_FILES:
            if (path / name).is_file():
                return path / name
        raise UserError(
            f"--checkpoint={where} has none of {', '.join(FOLDER_FILES)}: give the file."
        )
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", where):
        return _download(where)
    raise UserError(
        f"--checkpoint={where} does not exist: give a file, a folder, or OWNER/NAME of a hub."
    )


def _download(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise UserError(
            f"--checkpoint={name} is not a folder of this machine, and the hub needs "
            f"huggingface_hub: {how_to_install('hub')}, or give a folder."
        ) from error
    reason: Exception | None = None
    for file_name in HUB_FILES:
        try:
            path = Path(hf_hub_download(name, file_name))
            if file_name == INDEX_FILE:
                for shard in sorted(set(read_weight_map(path).values())):
                    hf_hub_download(name, shard)
            return path
        except Exception as error:  # offline, no such name, no such file: each of its own class
            reason = error
    first_line = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
    raise UserError(
        f"--checkpoint={name} is not a folder of this machine and cannot be downloaded from the "
        f"hub ({first_line}): download it on a machine with a connection, and give its folder."
    )
