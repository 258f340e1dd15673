"""Packs documents into blocks of L tokens.

`wrap`: every document is followed by EOS, all are joined, and the stream is cut every L tokens.
`pad`: each block is one document followed by EOS, cut at L or padded with EOS; padding carries no
loss.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Packed:
    """The tokens that some documents add to the stream of blocks.

    Attributes:
      stream: int32[n]; with `pad`, n is a multiple of L.
      valid: int32[documents], the number of real tokens in each block; None for `wrap`, where all
        are real.
    """

    stream: np.ndarray
    valid: np.ndarray | None


def wrap(documents: Sequence[np.ndarray], eos_id: int, length: int) -> Packed:
    """Joins int32[n_i] documents, each followed by EOS; `length` is not used yet."""
    del length
    eos = np.array([eos_id], np.int32)
    parts = [part for document in documents for part in (document, eos)]
    return Packed(np.concatenate(parts) if parts else np.empty(0, np.int32), None)


def pad(documents: Sequence[np.ndarray], eos_id: int, length: int) -> Packed:
    """Makes a row of `length` tokens of each int32[n_i] document, padded with EOS."""
    rows = np.full((len(documents), length), eos_id, np.int32)
    valid = np.empty(len(documents), np.int32)
    for row, document in enumerate(documents):
        kept = min(len(document), length)
        rows[row, :kept] = document[:kept]
        valid[row] = min(kept + 1, length)
    return Packed(rows.reshape(-1), valid)


PACKERS: Mapping[str, Callable[[Sequence[np.ndarray], int, int], Packed]] = {
    "wrap": wrap,
    "pad": pad,
}


def read_range(
    open_part: Callable[[int], np.ndarray], starts: np.ndarray, begin: int, end: int
) -> np.ndarray:
    """Reads items [begin, end) of a concatenation; only opens the parts that hold them.

    Args:
      open_part: part number -> its array or memory map; all have one dimension and the same dtype.
      starts: int64[parts], where each part begins in the concatenation.
      begin: first item.
      end: one past the last item.
    """
    slices = []
    index = int(np.searchsorted(starts, begin, side="right")) - 1
    while begin < end:
        offset = begin - int(starts[index])
        part = open_part(index)[offset : offset + end - begin]
        slices.append(part)
        begin += len(part)
        index += 1
    return np.concatenate(slices)


def block_ranges(blocks: int, step: int) -> Iterator[tuple[int, int]]:
    """Yields [start, stop) ranges of at most `step` blocks that cover `blocks`."""
    for start in range(0, blocks, step):
        yield start, min(start + step, blocks)
