"""Random access to the pairs of a prepared split, from its array_record files.

Imports nothing of data.build: Grain's worker processes import this file.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource

from ddm_jax.data.sets.text_records import RecordSpan


@dataclasses.dataclass(frozen=True)
class PairRecords:
    """The pairs of one split, in its order, including those too long for a batch.

    Attributes:
      spans: where the records are.
      dtype: of the stored ids, "uint16" or "int32".
      eos_id: the token after a text, which also pads a row.
      predict_eos: whether the EOS of a target is valid.
    """

    spans: tuple[RecordSpan, ...]
    dtype: str
    eos_id: int
    predict_eos: bool

    def __len__(self) -> int:
        return sum(span.take for span in self.spans)

    def read(
        self, indices: Sequence[int] | np.ndarray, rows: int, source_length: int, length: int
    ) -> dict[str, np.ndarray]:
        """Reads pairs, in the given order, as a batch of `rows`.

        Rows after the last pair are those of an empty text, and not valid anywhere.

        Args:
          indices: pair numbers in [0, len(self)), at most `rows` of them.
          rows: rows of the batch, b.
          source_length: S, enough for each source and an EOS.
          length: N, enough for each target and an EOS.

        Returns:
          tokens: int32[b, N].
          seen: bool[b, N], the words and one EOS.
          valid: bool[b, N], the positions that carry loss.
          source: int32[b, S].
          source_valid: bool[b, S], like `seen`.
        """
        source = np.full((rows, source_length), self.eos_id, np.int32)
        tokens = np.full((rows, length), self.eos_id, np.int32)
        words = np.zeros((2, rows, 1), np.int32)
        for row, features in enumerate(self._features(indices)):
            for side, (name, ids) in enumerate((("source", source), ("target", tokens))):
                text = np.frombuffer(features[name].bytes_list.value[0], self.dtype)
                ids[row, : len(text)] = text
                words[side, row] = len(text)
        real = np.arange(rows)[:, None] < len(indices)
        return {
            "tokens": tokens,
            "seen": np.arange(length) <= words[1],
            "valid": (np.arange(length) < words[1] + self.predict_eos) & real,
            "source": source,
            "source_valid": np.arange(source_length) <= words[0],
        }

    def texts(self) -> list[tuple[str, str]]:
        """Returns (source, target) of every pair, as they were before tokenisation."""
        return [
            (_text(features, "source_text"), _text(features, "target_text"))
            for features in self._features(range(len(self)))
        ]

    def _features(self, indices: Sequence[int] | np.ndarray) -> Iterator[Any]:
        from tensorflow_datasets.proto import tf_example_pb2  # slow to import

        # array_record refuses an empty list of records.
        for record in self._records.__getitems__(indices) if len(indices) else ():
            yield tf_example_pb2.Example.FromString(record).features.feature

    @functools.cached_property
    def _records(self) -> ArrayRecordDataSource:
        return ArrayRecordDataSource(self.spans)


def _text(features: Any, name: str) -> str:
    value: bytes = features[name].bytes_list.value[0]
    return value.decode()
