"""Files -> shards that can be read independently of each other.

A shard holds about `SHARD_BYTES[0]` to `SHARD_BYTES[1]` of input; more if a file cannot be cut. How
files are cut depends only on the files, never on the number of workers.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ddm_jax.data.sources.files import is_compressed

SHARD_BYTES = (2**20, 2**26)  # smallest and largest target size of a shard
SHARDS = 1024  # between these sizes: target number of shards


@dataclasses.dataclass(frozen=True)
class Shard:
    """A part of a source.

    Attributes:
      read: yields the documents; picklable.
      size: bytes of input, about those of its text; 0 if unknown, as of compressed files.
    """

    read: Callable[[], Iterator[str]]
    size: int


@dataclasses.dataclass(frozen=True)
class Span:
    """The lines of a file whose first byte is in [start, stop); the whole file if stop is None."""

    path: Path
    start: int = 0
    stop: int | None = None


def make_shards(
    paths: Sequence[Path], read: Callable[[Span], Iterator[str]], cut_above: int | None
) -> tuple[Shard, ...]:
    """Returns shards that cover the files in order.

    Args:
      paths: the files.
      read: yields the documents of a span; picklable.
      cut_above: files of more bytes may be cut at line ends, unless they are compressed; None: none
        may.
    """
    return tuple(
        Shard(
            functools.partial(_read_spans, read, tuple(group)),
            0 if any(is_compressed(span.path) for span in group) else size,
        )
        for group, size in _groups(paths, cut_above)
    )


def _read_spans(read: Callable[[Span], Iterator[str]], spans: Sequence[Span]) -> Iterator[str]:
    for span in spans:
        yield from read(span)


def _groups(paths: Sequence[Path], cut_above: int | None) -> Iterator[tuple[list[Span], int]]:
    """Yields groups of spans of the target size, with their bytes."""
    sizes = [path.stat().st_size for path in paths]
    target = min(max(sum(sizes) // SHARDS, SHARD_BYTES[0]), SHARD_BYTES[1])
    group: list[Span] = []
    room = target
    for path, size in zip(paths, sizes, strict=True):
        cut = cut_above is not None and size > cut_above and not is_compressed(path)
        start = 0
        while start < size:
            stop = min(start + room, size) if cut else size
            group.append(Span(path, start, stop) if cut else Span(path))
            room -= stop - start
            start = stop
            if room <= 0:
                yield group, target - room
                group, room = [], target
    if group:
        yield group, target - room
