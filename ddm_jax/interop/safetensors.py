"""Tensors in several safetensors files, with the index that says which of them has which."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from ddm_jax.errors import UserError

SHARDS = "model.safetensors.index.json"


def places_of(index: Path) -> dict[str, str]:
    """Name of a tensor -> that of its file.

    Raises:
      UserError: the file is no index.
    """
    try:
        return dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{index} is no index of safetensors files ({error!r}).") from error


class Sharded(Mapping):
    """name -> array of the safetensors files of an index, as `SafeTensors` has them.

    Raises:
      UserError: the index cannot be read, a file of it is not there, or a tensor is elsewhere than
        it says.
    """

    def __init__(self, index: Path):
        places = places_of(index)
        self.paths = sorted({index.parent / file for file in places.values()})
        for path in self.paths:
            if not path.is_file():
                raise UserError(f"{index} names {path.name}, which is not beside it: get it too.")
        self._of: dict[str, SafeTensors] = {}
        for path in self.paths:
            tensors = SafeTensors(path)
            for name in tensors:
                if index.parent / places.get(name, "") != path:
                    raise UserError(
                        f"{path} has the tensor {name}, which {index.name} "
                        + (f"puts into {places[name]}" if name in places else "does not name")
                        + ": get the whole folder again."
                    )
                self._of[name] = tensors
        if missing := places.keys() - self._of.keys():
            name = min(missing)
            raise UserError(
                f"{index.parent / places[name]} has no tensor {name}, which {index.name} puts "
                "there: get the whole folder again."
            )

    def __getitem__(self, name: str) -> np.ndarray:
        return self._of[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Every array of a file, as `SafeTensors` has them.

    Raises:
      UserError: safetensors is not installed, or the file is none of its.
    """
    return dict(SafeTensors(path))


class SafeTensors(Mapping):
    """name -> array of a file, read when asked for: float32, integers as they are.

    Raises:
      UserError: safetensors is not installed, or the file is none of its.
    """

    def __init__(self, path: Path):
        try:
            from safetensors import safe_open
        except ImportError as error:
            raise UserError(
                f"Reading {path} needs safetensors: pip install 'ddm_jax[judge]'."
            ) from error
        try:
            # opened anew for each array, so that no more of the file is held in memory
            self._open = lambda: safe_open(path, framework="numpy")
            self._names = tuple(self._open().keys())
        except Exception as error:  # SafetensorError, which older versions do not export
            raise UserError(f"{path} cannot be read ({error}).") from error

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        x = self._open().get_tensor(name)
        return np.asarray(x, np.float32 if jnp.issubdtype(x.dtype, jnp.floating) else None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
