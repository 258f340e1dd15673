"""What a long evaluation has done so far, in a file: the same command goes on from there."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.runs.files import read_metrics, write_atomically


class PartialResults:
    """Sequences 0, 1, .. with their nats and tokens, appended batch by batch.

    The first line of the file is all that decides the numbers; it must be the same, or the file is
    begun anew. A line that a kill tore is dropped, with what follows it.
    """

    def __init__(self, path: Path, decides: Mapping[str, Any], groups: int):
        """groups: columns of the nats."""
        self._path = path
        head = json.loads(json.dumps({"decides": decides}))
        lines = [head]
        found = read_metrics(path)
        if found and found[0] == head:
            for line in found[1:]:
                if line.get("first") != sum(len(x["tokens"]) for x in lines[1:]):
                    break
                lines.append(line)
        self.nats = np.array([x for line in lines[1:] for x in line["nats"]], np.float32)
        self.nats = self.nats.reshape(-1, groups)
        self.tokens = np.array([x for line in lines[1:] for x in line["tokens"]], np.int64)
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in lines))

    def __len__(self) -> int:
        """Sequences that are done."""
        return len(self.tokens)

    def append(self, nats: np.ndarray, tokens: np.ndarray) -> None:
        """The next sequences: float32[n, groups] nats of each group, int[n] tokens."""
        line = {"first": len(self), "nats": nats.tolist(), "tokens": tokens.tolist()}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        self.nats = np.concatenate([self.nats, nats])
        self.tokens = np.concatenate([self.tokens, tokens])
