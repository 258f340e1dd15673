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
from typing import Any

import numpy as np

from ddm_jax.data import sources, tokenizers
from ddm_jax.data.records import Blocks, RecordSpan
from ddm_jax.data.splits import SPLITS
from ddm_jax.data.tokenise import token_dtype
from ddm_jax.data.tokenizers import Tokenizer
from ddm_jax.errors import UserError

FORMAT = 1
MARKER = "ddm_jax.json"
COUNTS = "unigram_counts.npy"


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
        counts = dict(zip(SPLITS, np.load(self.folder / COUNTS), strict=True))
        smoothed = counts["train"] + 1
        return float(counts[split] @ -np.log(smoothed / smoothed.sum()) / counts[split].sum())

    def has_tokenizer(self, spec: str) -> bool:
        """Whether `data.tokenizer=spec` stands for the tokenizer of this set.

        Raises:
            UserError: unknown kind, or no such model file.
        """
        if tokenizers.is_trained(spec):
            return spec == self.tokenizer.name
        return tokenizers.given(spec).fingerprint == self.tokenizer.fingerprint

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
        import tensorflow_datasets as tfds

        spans = tfds.builder_from_directory(self.folder).info.splits[split].file_instructions
        return Blocks(
            tuple(RecordSpan(s.filename, s.skip, s.take, s.examples_in_shard) for s in spans),
            self.length,
            token_dtype(self.tokenizer.vocab_size).name,
        )

    def description(self) -> dict[str, Any]:
        """What ddm_jax.json says: plain values for JSON."""
        return {
            "format": FORMAT,
            "spec": dataclasses.asdict(self.spec),
            "source_fingerprint": self.source_fingerprint,
            "source_stamp": self.source_stamp,
            "tokenizer": {
                "name": self.tokenizer.name,
                "fingerprint": self.tokenizer.fingerprint,
                "vocab_size": self.tokenizer.vocab_size,
                "eos_id": self.tokenizer.eos_id,
            },
            "splits": {split: dataclasses.asdict(info) for split, info in self.splits.items()},
        }


_REMEDIES = {
    "train": "lower data.validation_fraction and data.test_fraction",
    "validation": "raise data.validation_fraction",
    "test": "raise data.test_fraction",
}


def default_folder(root: str | Path, spec: PrepareSpec) -> Path:
    """`root`/source-tokenizer-Llength-pack-hash8, the hash being of every field of the spec."""
    same_everywhere = dataclasses.replace(spec, source=sources.absolute(spec.source))
    fields = json.dumps({"format": FORMAT, **dataclasses.asdict(same_everywhere)}, sort_keys=True)
    digest = hashlib.sha256(fields.encode()).hexdigest()[:8]
    words = [_words(same_everywhere.source), _words(spec.tokenizer), f"L{spec.length}", spec.pack]
    return Path(root).expanduser() / "-".join([*words, digest])


def _words(spec: str) -> str:
    """`kind:path` -> kind_stem, the stem being of the last part of the path that has a name."""
    kind, _, name = spec.partition(":")
    stems = ["".join(re.findall(r"\w+", Path(part).stem)) for part in Path(name).parts]
    return "_".join([kind, *[stem for stem in stems if stem][-1:]])


def is_prepared(folder: Path) -> bool:
    """Whether the folder holds a finished set."""
    return (folder / MARKER).is_file()


def open_prepared(folder: Path) -> PreparedSet:
    """Opens a finished set.

    Raises:
        UserError: there is none, it is of another format, or its files are damaged.
    """
    if not is_prepared(folder):
        raise UserError(
            f"{folder} is not a prepared set (it has no {MARKER}): give the folder that "
            "`python -m ddm_jax.prepare` wrote."
        )
    try:
        record = json.loads((folder / MARKER).read_text())
        if record["format"] != FORMAT:
            raise UserError(
                f"{folder} has format {record['format']}, this version reads {FORMAT}: prepare the "
                "data again."
            )
        return PreparedSet(
            folder=folder,
            spec=PrepareSpec(**record["spec"]),
            source_fingerprint=record["source_fingerprint"],
            source_stamp=record["source_stamp"],
            tokenizer=tokenizers.load(folder),
            splits={split: SplitInfo(**info) for split, info in record["splits"].items()},
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder / MARKER} is damaged ({error}): prepare the data again."
        ) from error
