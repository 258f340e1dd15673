"""Reads and writes safetensors: one file, or several files and the index of their tensors."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from ddm_jax.errors import UserError, how_to_install

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


class SafeTensors(Mapping[str, np.ndarray]):
    """Tensor name -> array; an array is read each time it is asked for.

    Floating point arrays are float32, others keep their dtype.

    Attributes:
      files: the safetensors files, sorted.
    """

    def __init__(self, path: Path):
        """Reads the names of the tensors.

        Args:
          path: a safetensors file, or the index of several (a .json file next to them).

        Raises:
          UserError: safetensors is not installed; a file is missing or cannot be read; or the files
            do not have the tensors that the index states.
        """
        is_index = path.suffix == ".json"
        file_names = read_weight_map(path) if is_index else {}
        self.files = sorted({path.parent / name for name in file_names.values()} or {path})
        self._file_of: dict[str, Path] = {}
        for file in self.files:
            if is_index and not file.is_file():
                raise UserError(
                    f"{path} names {file.name}, which is not next to it: download it too."
                )
            for name in _tensor_names(file):
                if is_index:
                    _check_in_index(path, file_names, file, name)
                self._file_of[name] = file
        if missing := file_names.keys() - self._file_of.keys():
            name = min(missing)
            raise UserError(
                f"{path.parent / file_names[name]} has no tensor {name}, but {path.name} states "
                "that it has: download the whole folder again."
            )

    def __getitem__(self, name: str) -> np.ndarray:
        # opened for each array, so that no more of the file is held in memory
        x = _open(self._file_of[name]).get_tensor(name)
        return np.asarray(x, np.float32 if jnp.issubdtype(x.dtype, jnp.floating) else None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)


def read_weight_map(index: Path) -> dict[str, str]:
    """Reads an index: tensor name -> name of its file.

    Raises:
      UserError: the file is not an index.
    """
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is not an index of safetensors files ({error!r}).") from error


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes float32 tensors to a new file, not atomically.

    Raises:
      UserError: safetensors is not installed.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise UserError(f"Writing {path} needs safetensors: {how_to_install('judge')}.") from error
    save_file(dict(tensors), path, metadata={"format": "pt"})


def _open(path: Path) -> Any:
    try:
        from safetensors import safe_open
    except ImportError as error:
        raise UserError(f"Reading {path} needs safetensors: {how_to_install('judge')}.") from error
    return safe_open(path, framework="numpy")


def _tensor_names(path: Path) -> list[str]:
    try:
        return list(_open(path).keys())
    except UserError:
        raise
    except Exception as error:  # SafetensorError, which older versions do not export
        raise UserError(f"{path} cannot be read ({error}).") from error


def _check_in_index(index: Path, file_names: Mapping[str, str], file: Path, name: str) -> None:
    """Refuses a tensor of a file that the index does not state for that file."""
    stated = file_names.get(name)
    if stated is None or index.parent / stated != file:
        where = "does not name" if stated is None else f"states for {stated}"
        raise UserError(
            f"{file} has the tensor {name}, which {index.name} {where}: download the whole folder "
            "again."
        )
