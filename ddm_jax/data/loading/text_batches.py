"""Prepared text -> batches of blocks of tokens."""

import dataclasses
import functools
import sys
from collections.abc import Sequence

import grain
import numpy as np

from ddm_jax.data.loading.batch import HostBatch
from ddm_jax.data.loading.shuffle import shuffled
from ddm_jax.data.sets.text_records import TextRecords

RECORDS = 256  # read at once, at least: array_record starts threads for every read


@dataclasses.dataclass(frozen=True)
class TextTrainBatches:
    """A Grain source of training batches for one process.

    Index i holds the batches `first` + i n .. `first` + (i + 1) n - 1, where n is `per_read`.

    Attributes:
      records: the blocks.
      seed: decides the order.
      batch_size: rows of a batch, over all processes.
      own_rows: the rows of a batch that this process reads.
      first: number of the first batch at index 0.
    """

    records: TextRecords
    seed: int
    batch_size: int
    own_rows: tuple[int, ...]
    first: int = 0

    @property
    def per_read(self) -> int:
        """Number of batches that are read at once."""
        return -(-RECORDS // len(self.own_rows))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> list[HostBatch]:
        first = self.first + index * self.per_read
        begins = range(first * self.batch_size, (first + self.per_read) * self.batch_size)
        rows = [begin + row for begin in begins[:: self.batch_size] for row in self.own_rows]
        batches = _read(self.records, [self._order[row] for row in rows])
        parts = {name: np.split(x, self.per_read) for name, x in batches.items()}
        return [dict(zip(parts, part, strict=True)) for part in zip(*parts.values(), strict=True)]

    @functools.cached_property
    def _order(self) -> grain.MapDataset[int]:
        return shuffled(len(self.records), str(self.seed))


@dataclasses.dataclass(frozen=True)
class TextEvalBatches:
    """A Grain source of batches for one process: batch i at index i, in the order of the corpus.

    Attributes:
      records: the blocks.
      batch_size: rows of a batch, over all processes.
      own_rows: the rows of a batch that this process reads.
      count: number of blocks to read.
      filler: the token of rows after the last block.
    """

    records: TextRecords
    batch_size: int
    own_rows: tuple[int, ...]
    count: int
    filler: int

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __getitem__(self, index: int) -> HostBatch:
        wanted = [index * self.batch_size + row for row in self.own_rows]
        batch = _read(self.records, [i for i in wanted if i < self.count])
        missing = ((0, len(wanted) - len(batch["tokens"])), (0, 0))
        return {
            "tokens": np.pad(batch["tokens"], missing, constant_values=self.filler),
            "valid": np.pad(batch["valid"], missing, constant_values=False),
        }


def _read(records: TextRecords, indices: Sequence[int]) -> HostBatch:
    tokens, valid = records.read(indices)
    return {"tokens": tokens, "valid": valid}
