"""Random access to the blocks of tokens of a prepared split, from its array_record files.

Imports nothing of data.build: Grain's worker processes import this file.
"""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource


@dataclasses.dataclass(frozen=True)
class RecordSpan:
    """Records [skip, skip + take) of a file; array_record reads fields of these names."""

    filename: str
    skip: int
    take: int
    examples_in_shard: int


@dataclasses.dataclass(frozen=True)
class TextRecords:
    """The blocks of one split, in the order of the corpus.

    Attributes:
      spans: where the records are.
      length: tokens per block, L.
      dtype: of the stored ids, "uint16" or "int32".
    """

    spans: tuple[RecordSpan, ...]
    length: int
    dtype: str

    def __len__(self) -> int:
        return sum(span.take for span in self.spans)

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Reads blocks, in the given order.

        Args:
          indices: n block numbers in [0, len(self)).

        Returns:
          tokens: int32[n, L], and valid: bool[n, L], False on padding.
        """
        from tensorflow_datasets.proto import tf_example_pb2  # slow to import

        tokens = np.empty((len(indices), self.length), np.int32)
        lengths = np.empty((len(indices), 1), np.int32)
        # array_record refuses an empty list of records.
        records = self._records.__getitems__(indices) if len(indices) else ()
        for row, record in enumerate(records):
            # TFDS's own decoder gives the same arrays and takes about ten times as long.
            features = tf_example_pb2.Example.FromString(record).features.feature
            tokens[row] = np.frombuffer(features["tokens"].bytes_list.value[0], self.dtype)
            lengths[row] = features["length"].int64_list.value[0]
        return tokens, np.arange(self.length) < lengths

    @functools.cached_property
    def _records(self) -> ArrayRecordDataSource:
        return ArrayRecordDataSource(self.spans)


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the dtype of stored ids: the smaller of uint16 and int32 that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)
