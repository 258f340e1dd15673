"""Prepared pairs: a folder like that of packed text (`prepared`), with a record for each pair.

A record has the ids of both sides, without EOS, and both texts. `lengths-SPLIT.npy` says how long
each pair is, so that none need be read to find those that fit a batch.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.data.build.tokenise_shards import token_dtype
from ddm_jax.data.sets.pair_records import Pairs
from ddm_jax.data.sets.text import (
    COUNTS,
    PreparedSet,
    PrepareSpec,
    cross_entropy,
    describe,
    from_record,
    open_prepared,
    read_record,
    record_spans,
    word,
)
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
        validation: likewise, the pairs of that split; "" takes a fraction of the source.
        test: likewise.
        tokenizer: one of `tokenizers.KINDS` but text8, of both sides.
        length: tokens of the longest target that goes in a batch, EOS included, N.
        source_length: tokens of the longest source, EOS included, S.
        validation_fraction: of the pairs, where `validation` is empty.
        test_fraction: likewise.
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
        """What the default folder says of it."""
        lengths = f"S{self.source_length}", f"L{self.length}"
        return word(self.source), word(self.tokenizer), *lengths

    @property
    def files(self) -> Mapping[str, str]:
        """Which pairs are named, by field."""
        named = {"source": self.source, "validation": self.validation, "test": self.test}
        return {field: spec for field, spec in named.items() if spec}

    def absolute(self) -> "PairSpec":
        """The same for every folder that a relative path may start from."""
        files = {f: pair_files.absolute(spec, f"data.{f}") for f, spec in self.files.items()}
        return dataclasses.replace(self, **files)

    def stamp(self) -> str:
        """See `pair_files.stamp`."""
        return " ".join(pair_files.stamp(spec) for spec in self.files.values())

    def fingerprint(self) -> str:
        """See `pair_files.fingerprint`."""
        return pair_files.fingerprint(*self.files.values())


@dataclasses.dataclass(frozen=True)
class PairInfo:
    """One split in figures.

    Attributes:
        pairs: that the split is made of.
        empty: not among them: left out, for want of a word on one side.
        long: of the pairs, those with a side too long for a batch.
        source_tokens: of the pairs that fit, words alone.
        tokens: likewise, of the targets.
        bytes: of the UTF-8 text of those targets.
    """

    pairs: int
    empty: int
    long: int
    source_tokens: int
    tokens: int
    bytes: int

    @property
    def fitting(self) -> int:
        """Pairs that batches are made of."""
        return self.pairs - self.long


@dataclasses.dataclass(frozen=True)
class PreparedPairs:
    """Finished pairs on disk.

    Attributes:
        folder: where they lie.
        spec: what they were prepared from.
        source_fingerprint: hash (hex) of all pairs of the source.
        source_stamp: see `PairSpec.stamp`, when it was prepared.
        tokenizer: as saved in the folder.
        splits: by name, all three; one may have no pair.
        buckets: shapes of a batch, see `pairs.buckets`; no part of what is on disk.
        predict_eos: whether the EOS of a target carries loss, likewise.
    """

    folder: Path
    spec: PairSpec
    source_fingerprint: str
    source_stamp: str
    tokenizer: Tokenizer
    splits: Mapping[str, PairInfo]
    buckets: int = 1
    predict_eos: bool = False

    @property
    def length(self) -> int:
        """Tokens of the longest target, EOS included, N."""
        return self.spec.length

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes of target text for each valid token, over the pairs that fit."""
        info = self.splits[split]
        return info.bytes / max(1, info.tokens + self.predict_eos * info.fitting)

    def unigram_entropy(self, split: str) -> float:
        """Nats per valid target token under the train split's unigram counts, each plus one."""
        counts = np.load(self.folder / COUNTS)
        if self.predict_eos:
            counts[:, self.tokenizer.eos_id] += [self.splits[s].fitting for s in SPLITS]
        return cross_entropy(counts, split)

    def has_tokenizer(self, spec: str) -> bool:
        """See `tokenizers.names`."""
        return tokenizers.names(spec, self.tokenizer)

    def texts(self, split: str) -> list[tuple[str, str]]:
        """(source, target) of every pair of a split, also of those that fit no batch.

        Pairs of a file are in its order; a fraction of another split is in order of a hash.
        """
        return self._records(split).texts() if self.splits[split].pairs else []

    def pairs(self, split: str) -> Pairs:
        """Random access to a split.

        Raises:
            UserError: no pair of the split fits a batch.
        """
        if not self.splits[split].fitting:
            limits = f"data.length={self.length} and data.source_length={self.spec.source_length}"
            raise UserError(
                f"The {split} split of {self.folder} has no pair that fits {limits}: raise "
                f"these, {_REMEDIES[split]}, or add text."
            )
        return self._records(split)

    def lengths(self, split: str) -> np.ndarray:
        """int32[n, 2]: tokens of source and target of every pair, EOS included."""
        return np.load(self.folder / lengths_file(split))

    def description(self) -> dict[str, Any]:
        """What ddm_jax.json says: plain values for JSON."""
        return describe(self)

    def _records(self, split: str) -> Pairs:
        dtype = token_dtype(self.tokenizer.vocab_size).name
        spans = record_spans(self.folder, split)
        return Pairs(spans, dtype, self.tokenizer.eos_id, self.predict_eos)


_REMEDIES = {
    "train": "lower data.validation_fraction and data.test_fraction",
    "validation": "give data.validation or raise data.validation_fraction",
    "test": "give data.test or raise data.test_fraction",
}


def lengths_file(split: str) -> str:
    """The file of `PreparedPairs.lengths`."""
    return f"lengths-{split}.npy"


def spec_kind(source: str) -> type[PrepareSpec] | type[PairSpec]:
    """The record of settings that a `data.source` takes."""
    return PairSpec if pair_files.names_pairs(source) else PrepareSpec


def open_folder(folder: Path) -> PreparedSet | PreparedPairs:
    """Opens a finished set of either kind.

    Raises:
        UserError: there is none, it is of another format, or its files are damaged.
    """
    spec = read_record(folder).get("spec")
    if isinstance(spec, dict) and pair_files.names_pairs(str(spec.get("source"))):
        return from_record(folder, PreparedPairs, PairSpec, PairInfo)
    return open_prepared(folder)
