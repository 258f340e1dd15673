"""A prepared set of text: blocks of tokens, in the folder that sets/folder.py describes."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.data.sets.folder import COUNTS, cross_entropy, describe, read_set, record_spans, word
from ddm_jax.data.sets.text_records import TextRecords, token_dtype
from ddm_jax.data.sources import registry as sources
from ddm_jax.data.sources.registry import Source
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TextSpec:
    """What to prepare; equal specs over equal text give equal sets.

    Attributes:
      source: one of `sources.KINDS`.
      tokenizer: one of `tokenizers.KINDS`.
      length: tokens per block, L.
      pack: "wrap" or "pad" (see `packing`).
      validation_fraction: fraction of the documents, if there is no such split.
      test_fraction: fraction of the documents, if there is no such split.
      validation: the text of this split, one of `sources.KINDS`; "" takes the source's own split,
        or a fraction.
      test: the text of this split, likewise.
    """

    source: str = "embedded"
    tokenizer: str = "gpt2"
    length: int = 1024
    pack: str = "wrap"
    validation_fraction: float = 0.04
    test_fraction: float = 0.04
    validation: str = ""
    test: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the default folder's name."""
        source, tokenizer = word(self.source), word(self.tokenizer)
        return source, tokenizer, f"L{self.length}", self.pack

    @property
    def held_out(self) -> Mapping[str, str]:
        """The splits that have a source of their own: split -> source."""
        named = {"validation": self.validation, "test": self.test}
        return {split: spec for split, spec in named.items() if spec}

    @property
    def named(self) -> Mapping[str, str]:
        """The fields that name a source, with their values."""
        return {"source": self.source, **self.held_out}

    def absolute(self) -> "TextSpec":
        """Returns the spec with absolute paths, independent of the current folder."""
        named = {field: sources.absolute(spec, field) for field, spec in self.named.items()}
        return dataclasses.replace(
            self,
            source=named["source"],
            validation=named.get("validation", ""),
            test=named.get("test", ""),
        )

    def open_source(self) -> Source:
        """See `sources.open_source`."""
        return sources.open_source(self.source, self.held_out)

    def stamp(self) -> str:
        """See `sources.stamp`."""
        return " ".join(sources.stamp(spec) for spec in self.named.values())

    def fingerprint(self) -> str:
        """See `sources.fingerprint`."""
        return sources.fingerprint(self.open_source())


@dataclasses.dataclass(frozen=True)
class TextSplitInfo:
    """The figures of one split.

    Attributes:
      blocks: number of blocks of L tokens.
      tokens: real tokens in the blocks, with EOS, without padding.
      dropped_tokens: tokens in no block: the tail that fills none (wrap), or what is cut off (pad).
      documents: number of documents.
      bytes: bytes of their UTF-8 text.
      bytes_per_token: bytes of text per real token; EOS counts as a token without bytes.
    """

    blocks: int
    tokens: int
    dropped_tokens: int
    documents: int
    bytes: int
    bytes_per_token: float


@dataclasses.dataclass(frozen=True)
class PreparedText:
    """A finished set on disk.

    Attributes:
      folder: the folder of the set.
      spec: what it was prepared from.
      source_fingerprint: hash (hex) of the contents of the source.
      source_stamp: `sources.stamp` at the time of preparation.
      tokenizer: as saved in the folder.
      splits: all three splits by name; one may have no block.
    """

    folder: Path
    spec: TextSpec
    source_fingerprint: str
    source_stamp: str
    tokenizer: Tokenizer
    splits: Mapping[str, TextSplitInfo]

    @property
    def length(self) -> int:
        """Tokens per block, L."""
        return self.spec.length

    def bytes_per_token(self, split: str) -> float:
        """Returns UTF-8 bytes per real token: bits/byte = nats per token / (this * log 2)."""
        return self.splits[split].bytes_per_token

    def unigram_entropy(self, split: str) -> float:
        """Returns nats per token of the split under the unigram counts of train, each plus one."""
        return cross_entropy(np.load(self.folder / COUNTS), split)

    def has_tokenizer(self, spec: str) -> bool:
        """See `tokenizers.matches`."""
        return tokenizers.matches(spec, self.tokenizer)

    def records(self, split: str) -> TextRecords:
        """Opens a split for random access.

        Raises:
          UserError: the split has no block.
        """
        if not self.splits[split].blocks:
            raise UserError(
                f"The {split} split of {self.folder} has no block of {self.length} tokens: lower "
                f"data.length, {_REMEDIES[split]}, or add text."
            )
        dtype = token_dtype(self.tokenizer.vocab_size).name
        return TextRecords(record_spans(self.folder, split), self.length, dtype)

    def description(self) -> dict[str, Any]:
        """Returns the contents of ddm_jax.json, as plain values for JSON."""
        return describe(
            self.spec, self.source_fingerprint, self.source_stamp, self.tokenizer, self.splits
        )


_REMEDIES = {
    "train": "lower data.validation_fraction and data.test_fraction",
    "validation": "give data.validation or raise data.validation_fraction",
    "test": "give data.test or raise data.test_fraction",
}


def open_text(folder: Path) -> PreparedText:
    """Opens a finished set of text.

    Raises:
      UserError: there is none, it has another format, or its files are damaged.
    """
    return read_set(folder, PreparedText, TextSpec, TextSplitInfo)
