"""Partial results of a long evaluation, so that rerunning the command resumes it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.runs.files import read_metrics, write_atomically


class PartialResults:
    """Nats and tokens of sequences 0, 1, .., in memory and in a file that grows batch by batch.

    The first line of the file is the identity of the numbers, under "decides". If it differs, the
    file starts anew. A line that a kill left incomplete is dropped, and so is all that follows it.

    Attributes:
      nats: float32[n, groups] of the n sequences so far.
      tokens: int64[n], their tokens.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], groups: int):
        """Reads what the file already holds.

        Args:
          path: of the file, which need not exist.
          identity: all that determines the numbers (likelihood/report.py).
          groups: columns of `nats`.
        """
        self._path = path
        head = json.loads(json.dumps({"decides": identity}))
        lines = [head]
        found: list[dict[str, Any]] = list(read_metrics(path))
        if found and found[0] == head:
            for line in found[1:]:
                if line.get("first") != sum(len(x["tokens"]) for x in lines[1:]):
                    break
                lines.append(line)
        nats = np.array([x for line in lines[1:] for x in line["nats"]], np.float32)
        self.nats = nats.reshape(-1, groups)
        self.tokens = np.array([x for line in lines[1:] for x in line["tokens"]], np.int64)
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))

    def __len__(self) -> int:
        """The number of sequences so far."""
        return len(self.tokens)

    def append(self, nats: np.ndarray, tokens: np.ndarray) -> None:
        """Adds the next n sequences: float32[n, groups] nats of each group, int[n] tokens."""
        line = {"first": len(self), "nats": nats.tolist(), "tokens": tokens.tolist()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.nats = np.concatenate([self.nats, nats])
        self.tokens = np.concatenate([self.tokens, tokens])
