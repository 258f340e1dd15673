"""A prepared set: a folder that holds blocks of tokens and all that is known about them.

The folder is a TFDS data set (`tfds.builder_from_directory` opens it) with three things added:
the tokenizer, `unigram_counts.npy` (int64[3, V]: train, validation, test) and `ddm_jax.json`,
which is written last and so marks the set as finished.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ddm_jax.data.build.tokenise_shards import token_dtype
from ddm_jax.data.sets.text_records import Blocks, RecordSpan
from ddm_jax.data.sources import registry as sources
from ddm_jax.data.splits import SPLITS
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError

FORMAT = 1
MARKER = "ddm_jax.json"
COUNTS = "unigram_counts.npy"

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class PrepareSpec:
    """What to prepare; equal specs over equal text give equal sets.

    Attributes:
        source: one of `sources.KINDS`.
        tokenizer: one of `tokenizers.KINDS`.
        length: tokens a block, L.
        pack: "wrap" or "pad" (see `packing`).
        validation_fraction: of the documents, where the source has no such split.
        test_fraction: likewise.
    """

    source: str = "embedded"
    tokenizer: str = "gpt2"
    length: int = 1024
    pack: str = "wrap"
    validation_fraction: float = 0.04
    test_fraction: float = 0.04

    @property
    def words(self) -> tuple[str, ...]:
        """What the default folder says of it."""
        source, tokenizer = word(self.source), word(self.tokenizer)
        return source, tokenizer, f"L{self.length}", self.pack

    def absolute(self) -> "PrepareSpec":
        """The same for every folder that a relative path may start from."""
        return dataclasses.replace(self, source=sources.absolute(self.source))

    def stamp(self) -> str:
        """See `sources.stamp`."""
        return sources.stamp(self.source)

    def fingerprint(self) -> str:
        """See `sources.fingerprint`."""
        return sources.fingerprint(sources.open_source(self.source))


@dataclasses.dataclass(frozen=True)
class SplitInfo:
    """One split in figures.

    Attributes:
        blocks: of L tokens.
        tokens: real ones in the blocks, EOS included, padding not.
        dropped_tokens: in no block: the tail that fills none (wrap), or what was cut off (pad).
        documents: that the split is made of.
        bytes: of their UTF-8 text.
        bytes_per_token: text bytes for each real token, EOS counted as a token of none.
    """

    blocks: int
    tokens: int
    dropped_tokens: int
    documents: int
    bytes: int
    bytes_per_token: float


@dataclasses.dataclass(frozen=True)
class PreparedSet:
    """A finished set on disk.

    Attributes:
        folder: where it lies.
        spec: what it was prepared from.
        source_fingerprint: hash (hex) of the contents of the source.
        source_stamp: see `sources.stamp`, when it was prepared.
        tokenizer: as saved in the folder.
        splits: by name, all three; one may have no block.
    """

    folder: Path
    spec: PrepareSpec
    source_fingerprint: str
    source_stamp: str
    tokenizer: Tokenizer
    splits: Mapping[str, SplitInfo]

    @property
    def length(self) -> int:
        """Tokens a block, L."""
        return self.spec.length

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes of text for each real token: nats per token / (this * log 2) is bits/byte."""
        return self.splits[split].bytes_per_token

    def unigram_entropy(self, split: str) -> float:
        """Nats per token of the split under the train split's unigram counts, each plus one."""
        return cross_entropy(np.load(self.folder / COUNTS), split)

    def has_tokenizer(self, spec: str) -> bool:
        """See `tokenizers.names`."""
        return tokenizers.names(spec, self.tokenizer)

    def blocks(self, split: str) -> Blocks:
        """Random access to a split.

        Raises:
            UserError: the split has no block.
        """
        if not self.splits[split].blocks:
            raise UserError(
                f"The {split} split of {self.folder} has no block of {self.length} tokens: lower "
                f"data.length, {_REMEDIES[split]}, or add text."
            )
        dtype = token_dtype(self.tokenizer.vocab_size).name
        return Blocks(record_spans(self.folder, split), self.length, dtype)

    def description(self) -> dict[str, Any]:
        """What ddm_jax.json says: plain values for JSON."""
        return describe(self)


_REMEDIES = {
    "train": "lower data.validation_fraction and data.test_fraction",
    "validation": "raise data.validation_fraction",
    "test": "raise data.test_fraction",
}


def default_folder(root: str | Path, spec: Any) -> Path:
    """`root`/words-hash8 of a PrepareSpec or a PairSpec, the hash being of all its fields."""
    spec = spec.absolute()
    fields = json.dumps({"format": FORMAT, **dataclasses.asdict(spec)}, sort_keys=True)
    digest = hashlib.sha256(fields.encode()).hexdigest()[:8]
    return Path(root).expanduser() / "-".join([*spec.words, digest])


def word(spec: str) -> str:
    """`kind:path` -> kind_stem, the stem being of the last part of the path that has a name."""
    kind, _, name = spec.partition(":")
    stems = ["".join(re.findall(r"\w+", Path(part).stem)) for part in Path(name).parts]
    return "_".join([kind, *[stem for stem in stems if stem][-1:]])


def is_prepared(folder: Path) -> bool:
    """Whether the folder holds a finished set."""
    return (folder / MARKER).is_file()


def open_prepared(folder: Path) -> PreparedSet:
    """Opens a finished set of packed tokens.

    Raises:
        UserError: there is none, it is of another format, or its files are damaged.
    """
    return from_record(folder, PreparedSet, PrepareSpec, SplitInfo)


def from_record(folder: Path, kind: type[T], spec: type, info: type) -> T:
    """A `kind` of finished set, with its `spec` and the `info` of each split, from its record.

    Raises:
        UserError: see `open_prepared`.
    """
    record = read_record(folder)
    try:
        return kind(
            folder=folder,
            spec=spec(**record["spec"]),
            source_fingerprint=record["source_fingerprint"],
            source_stamp=record["source_stamp"],
            tokenizer=tokenizers.load(folder),
            splits={split: info(**figures) for split, figures in record["splits"].items()},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error


def read_record(folder: Path) -> dict[str, Any]:
    """What `describe` said when the set in the folder was finished.

    Raises:
        UserError: see `open_prepared`.
    """
    if not is_prepared(folder):
        raise UserError(
            f"{folder} is not a prepared set (it has no {MARKER}): give the folder that "
            "`python -m ddm_jax.prepare` wrote."
        )
    try:
        record = json.loads((folder / MARKER).read_text())
        has = record["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error
    if has != FORMAT:
        raise UserError(
            f"{folder} has format {has}, this version reads {FORMAT}: prepare the data again."
        )
    return record


def describe(prepared: Any) -> dict[str, Any]:
    """The description of a PreparedSet or of PreparedPairs."""
    tokenizer = prepared.tokenizer
    return {
        "format": FORMAT,
        "spec": dataclasses.asdict(prepared.spec),
        "source_fingerprint": prepared.source_fingerprint,
        "source_stamp": prepared.source_stamp,
        "tokenizer": {
            "name": tokenizer.name,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "eos_id": tokenizer.eos_id,
        },
        "splits": {split: dataclasses.asdict(info) for split, info in prepared.splits.items()},
    }


def cross_entropy(counts: np.ndarray, split: str) -> float:
    """Nats per token of a split under the train split's frequencies.

    Args:
        counts: int64[3, V], how often each id occurs in the splits; those of train, each plus one,
            give the frequencies.
        split: of which the tokens are.
    """
    smoothed = counts[SPLITS.index("train")] + 1
    tokens = counts[SPLITS.index(split)]
    return float(tokens @ -np.log(smoothed / smoothed.sum()) / tokens.sum())


def record_spans(folder: Path, split: str) -> tuple[RecordSpan, ...]:
    """Where the records of a split are."""
    import tensorflow_datasets as tfds

    spans = tfds.builder_from_directory(folder).info.splits[split].file_instructions
    return tuple(RecordSpan(s.filename, s.skip, s.take, s.examples_in_shard) for s in spans)


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(f"{folder / MARKER} is damaged ({error}): prepare the data again.")
