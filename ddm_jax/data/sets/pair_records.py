"""Random access to the pairs of a prepared split, straight from its array_record files."""

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from tensorflow_datasets.proto import tf_example_pb2

from ddm_jax.data.sets.text_records import RecordSpan


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The pairs of one split, in its order; those too long for a batch are among them.

    Attributes:
        spans: where the records are.
        dtype: of the stored ids, "uint16" or "int32".
        eos_id: what ends a text and fills a row.
        predict_eos: whether the EOS of a target is valid.
    """

    spans: tuple[RecordSpan, ...]
    dtype: str
    eos_id: int
    predict_eos: bool

    def __len__(self) -> int:
        return sum(span.take for span in self.spans)

    def read(
        self, indices: Sequence[int], rows: int, source_length: int, length: int
    ) -> dict[str, np.ndarray]:
        """Some pairs, in the order asked for, as a batch of `rows`.

        Rows after the last pair are as of an empty text, and nowhere valid.

        Args:
            indices: pair numbers in [0, len(self)), `rows` at most.
            rows: b.
            source_length: S, which holds the sources and an EOS.
            length: N, likewise.

        Returns:
            tokens: int32[b, N], seen: bool[b, N], the words and the one EOS, valid: bool[b, N],
            what carries loss, source: int32[b, S], and source_valid: bool[b, S], as seen.
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
        """Source and target of every pair, as they were before they became tokens."""
        return [
            tuple(
                features[name].bytes_list.value[0].decode()
                for name in ("source_text", "target_text")
            )
            for features in self._features(range(len(self)))
        ]

    def _features(self, indices: Sequence[int]) -> Iterator[dict]:
        # array_record refuses to read no record at all.
        for record in self._records.__getitems__(indices) if len(indices) else ():
            yield tf_example_pb2.Example.FromString(record).features.feature

    @functools.cached_property
    def _records(self) -> ArrayRecordDataSource:
        return ArrayRecordDataSource(self.spans)
