"""Local files: which ones a source names, their stamp, and their lines, of compressed ones too."""

import contextlib
import glob
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from ddm_jax.errors import UserError

CODECS = {".gz": "gzip", ".zst": "zstd"}  # suffix -> pyarrow's name
_BOM = b"\xef\xbb\xbf"
_BLOCK = 2**20  # bytes


def find_files(pattern: str, suffixes: Sequence[str], label: str) -> list[Path]:
    """Returns the files that a source names, sorted by path, without empty ones.

    Args:
      pattern: a path; a glob; or a folder, of which all files at any depth with one of the suffixes
        are taken, but hidden ones.
      suffixes: of the files of a folder, without that of a compression.
      label: the field and its value, for messages.

    Raises:
      UserError: nothing matches, or all files are empty.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        paths = [
            p for p in _files_beneath(path) if without_compression(p).endswith(tuple(suffixes))
        ]
        wanted = f"has no file with the suffix {', '.join(suffixes)} (or these with .gz or .zst)"
    else:
        found = [str(path)] if path.is_file() else glob.glob(str(path), recursive=True)
        paths = [Path(p) for p in found if Path(p).is_file()]
        wanted = "matches no file"
    if not paths:
        raise UserError(
            f"{label} {wanted}: give a path, a glob or a folder of text files (relative ones start "
            f"from {Path.cwd()})."
        )
    if not (full := sorted(path for path in paths if path.stat().st_size)):
        raise UserError(f"{label}: the file {min(paths)} is empty: name files that have text.")
    return full


def without_compression(path: Path) -> str:
    """Returns the name of a file without the suffix of its compression."""
    return path.stem if path.suffix in CODECS else path.name


def is_compressed(path: Path) -> bool:
    """Returns whether a file has to be decompressed, and so can only be read from its beginning."""
    return path.suffix in CODECS


def stamp(paths: Sequence[Path]) -> str:
    """Returns the sha256 (hex) of the files' names, sizes and times of modification."""
    rows = [(str(p.absolute()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def lines(
    path: Path, start: int = 0, stop: int | None = None, limit: int = -1
) -> Iterator[tuple[int, bytes]]:
    r"""Yields (byte offset, line with its end) of each line whose first byte is in [start, stop).

    Only "\n" ends a line. A byte order mark at the beginning of the file is left out.

    Args:
      path: a file; offsets are those of its decompressed content.
      start: 0 for a compressed file.
      stop: None for the end of the file.
      limit: longer lines come in pieces of this many bytes; -1: whole.

    Raises:
      UserError: a compressed file is damaged.
    """
    with _opened(path) as file:
        offset = _seek_line(file, start, stop, limit) if start else 0
        at_start = True  # of a line
        while piece := file.readline(limit):
            if at_start and stop is not None and offset >= stop:
                break
            begin, offset = offset, offset + len(piece)
            at_start = piece.endswith(b"\n")
            if not begin and piece.startswith(_BOM):
                begin, piece = len(_BOM), piece[len(_BOM) :]
            yield begin, piece


def place(path: Path, offset: int) -> str:
    """Returns `file:line` of a byte offset, for a message; counts the lines before it."""
    line = 1
    with _opened(path) as file:
        while offset > 0 and (block := file.read(min(_BLOCK, offset))):
            line += block.count(b"\n")
            offset -= len(block)
    return f"{path}:{line}"


def not_utf8(path: Path, offset: int, byte: int) -> UserError:
    """Returns the error of a byte that is not UTF-8, at an offset of the file."""
    return UserError(
        f"{path} is not UTF-8 at byte {offset} (0x{byte:02x}): convert it to UTF-8 or leave it out."
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for reading bytes, decompressed.

    Raises:
      UserError: within it, a read of a damaged compressed file.
    """
    if not is_compressed(path):
        with path.open("rb") as plain:
            yield plain
        return
    import pyarrow  # slow to import

    try:
        with pyarrow.input_stream(str(path), compression=CODECS[path.suffix]) as stream:
            yield cast(BinaryIO, io.BufferedReader(stream, _BLOCK))
    except OSError as error:
        raise UserError(f"{path} is damaged ({error}): get it again.") from None


def _seek_line(file: BinaryIO, start: int, stop: int | None, limit: int) -> int:
    """Moves to the first line that begins at `start` or later; returns its offset.

    Stops at `stop`, wherever that is.
    """
    # Starts one byte early, so as not to skip a line that starts right at `start`.
    offset = file.seek(start - 1)
    while stop is None or offset < stop:
        piece = file.readline(limit)
        offset += len(piece)
        if not piece or piece.endswith(b"\n"):
            break
    return offset


def _files_beneath(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent, name) for name in names if not name.startswith("."))
