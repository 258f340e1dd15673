"""A prepared set of pairs: a record for each pair, in the folder that sets/folder.py describes.

A record has the ids of both sides, without EOS, and both texts. `lengths-SPLIT.npy` has the length
of each pair, so that the pairs that fit a batch are found without reading records.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.data.sets.folder import COUNTS, cross_entropy, describe, read_set, record_spans, word
from ddm_jax.data.sets.pair_records import PairRecords
from ddm_jax.data.sets.text_records import token_dtype
from ddm_jax.data.sources import pair_files
from ddm_jax.data.splits import SPLITS
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class PairSpec:
    """What to prepare; equal specs over equal text give equal sets.

    Attributes:
      source: one of `pair_files.KINDS`.
      validation: the pairs of this split, one of `pair_files.KINDS`; "" takes a fraction of source.
      test: the pairs of this split, likewise.
      tokenizer: one of `tokenizers.KINDS` except text8, for both sides.
      length: tokens of the longest target in a batch, EOS included, N.
      source_length: tokens of the longest source in a batch, EOS included, S.
      validation_fraction: fraction of the pairs, if `validation` is empty.
      test_fraction: fraction of the pairs, if `test` is empty.
    """

    source: str = "pairs:embedded"
    validation: str = ""
    test: str = ""
    tokenizer: str = "sentencepiece:8192"
    length: int = 256
    source_length: int = 256
    validation_fraction: float = 0.04
    test_fraction: float = 0.04

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the default folder's name."""
        lengths = f"S{self.source_length}", f"L{self.length}"
        return word(self.source), word(self.tokenizer), *lengths

    @property
    def named(self) -> Mapping[str, str]:
        """The fields that name pairs, with their values."""
        named = {"source": self.source, "validation": self.validation, "test": self.test}
        return {field: spec for field, spec in named.items() if spec}

    def absolute(self) -> "PairSpec":
        """Returns the spec with absolute paths, independent of the current folder."""
        files = {f: pair_files.absolute(spec, f"data.{f}") for f, spec in self.named.items()}
        return dataclasses.replace(
            self,
            source=files["source"],
            validation=files.get("validation", ""),
            test=files.get("test", ""),
        )

    def stamp(self) -> str:
        """See `pair_files.stamp`."""
        return " ".join(pair_files.stamp(spec) for spec in self.named.values())

    def fingerprint(self) -> str:
        """See `pair_files.fingerprint`."""
        return pair_files.fingerprint(*self.named.values())


@dataclasses.dataclass(frozen=True)
class PairSplitInfo:
    """The figures of one split.

    Attributes:
      pairs: number of pairs.
      empty: pairs left out of the split, because a side has no words.
      long: pairs with a side too long for a batch.
      source_tokens: tokens of the sources of the pairs that fit, without EOS.
      tokens: tokens of the targets of the pairs that fit, without EOS.
      bytes: bytes of the UTF-8 text of those targets.
    """

    pairs: int
    empty: int
    long: int
    source_tokens: int
    tokens: int
    bytes: int

    @property
    def fitting(self) -> int:
        """Number of pairs that fit a batch."""
        return self.pairs - self.long


@dataclasses.dataclass(frozen=True)
class PreparedPairs:
    """A finished set on disk.

    Attributes:
      folder: the folder of the set.
      spec: what it was prepared from.
      source_fingerprint: hash (hex) of all pairs of the source.
      source_stamp: `PairSpec.stamp` at the time of preparation.
      tokenizer: as saved in the folder.
      splits: all three splits by name; one may have no pair.
      buckets: number of batch shapes (`pair_encoding.bucket_shapes`); not stored on disk.
      predict_eos: whether the EOS of a target carries loss; not stored on disk.
    """

    folder: Path
    spec: PairSpec
    source_fingerprint: str
    source_stamp: str
    tokenizer: Tokenizer
    splits: Mapping[str, PairSplitInfo]
    buckets: int = 1
    predict_eos: bool = False

    @property
    def length(self) -> int:
        """Tokens of the longest target, EOS included, N."""
        return self.spec.length

    def bytes_per_token(self, split: str) -> float:
        """Returns UTF-8 bytes of target text per valid token, over the pairs that fit."""
        info = self.splits[split]
        return info.bytes / max(1, info.tokens + self.predict_eos * info.fitting)

    def unigram_entropy(self, split: str) -> float:
        """Returns nats per valid target token under the unigram counts of train, each plus one."""
        counts = np.load(self.folder / COUNTS)
        if self.predict_eos:
            counts[:, self.tokenizer.eos_id] += [self.splits[s].fitting for s in SPLITS]
        return cross_entropy(counts, split)

    def has_tokenizer(self, spec: str) -> bool:
        """See `tokenizers.matches`."""
        return tokenizers.matches(spec, self.tokenizer)

    def texts(self, split: str) -> list[tuple[str, str]]:
        """Returns (source, target) of every pair of a split, including those that fit no batch.

        Pairs of a file are in its order; a fraction of another split is in the order of a hash.
        """
        return self._open(split).texts() if self.splits[split].pairs else []

    def records(self, split: str) -> PairRecords:
        """Opens a split for random access.

        Raises:
          UserError: no pair of the split fits a batch.
        """
        if not self.splits[split].fitting:
            limits = f"data.length={self.length} and data.source_length={self.spec.source_length}"
            raise UserError(
                f"The {split} split of {self.folder} has no pair that fits {limits}: raise "
                f"these, {_REMEDIES[split]}, or add text."
            )
        return self._open(split)

    def lengths(self, split: str) -> np.ndarray:
        """Reads int32[n, 2]: tokens of source and target of every pair, EOS included."""
        lengths: np.ndarray = np.load(self.folder / lengths_file(split))
        return lengths

    def description(self) -> dict[str, Any]:
        """Returns the contents of ddm_jax.json, as plain values for JSON."""
        return describe(
            self.spec, self.source_fingerprint, self.source_stamp, self.tokenizer, self.splits
        )

    def _open(self, split: str) -> PairRecords:
        dtype = token_dtype(self.tokenizer.vocab_size).name
        spans = record_spans(self.folder, split)
        return PairRecords(spans, dtype, self.tokenizer.eos_id, self.predict_eos)


_REMEDIES = {
    "train": "lower data.validation_fraction and data.test_fraction",
    "validation": "give data.validation or raise data.validation_fraction",
    "test": "give data.test or raise data.test_fraction",
}


def lengths_file(split: str) -> str:
    """Returns the name of the file that `PreparedPairs.lengths` reads."""
    return f"lengths-{split}.npy"


def open_pairs(folder: Path) -> PreparedPairs:
    """Opens a finished set of pairs.

    Raises:
      UserError: there is none, it has another format, or its files are damaged.
    """
    return read_set(folder, PreparedPairs, PairSpec, PairSplitInfo)
