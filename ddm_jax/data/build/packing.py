"""Documents -> blocks of L tokens.

`wrap`: every document is followed by EOS, all are joined, and the stream is cut every L tokens.
`pad`: one document a block, followed by EOS, cut at L or filled up; what is filled carries no loss.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Packed:
    """The tokens that some documents put in the stream of blocks.

    Attributes:
        stream: int32[n]; with `pad`, n is a multiple of L.
        valid: int32[documents], how many tokens of each block are real; None for `wrap`, where all
            are.
    """

    stream: np.ndarray
    valid: np.ndarray | None


def wrap(documents: Sequence[np.ndarray], eos_id: int, length: int) -> Packed:
    """Joins int32[n_i] documents, each with EOS after it; `length` plays no part yet."""
    del length
    eos = np.array([eos_id], np.int32)
    parts = [part for document in documents for part in (document, eos)]
    return Packed(np.concatenate(parts) if parts else np.empty(0, np.int32), None)


def pad(documents: Sequence[np.ndarray], eos_id: int, length: int) -> Packed:
    """One row of `length` per int32[n_i] document; rows are filled with EOS."""
    rows = np.full((len(documents), length), eos_id, np.int32)
    valid = np.empty(len(documents), np.int32)
    for row, document in enumerate(documents):
        kept = min(len(document), length)
        rows[row, :kept] = document[:kept]
        valid[row] = min(kept + 1, length)
    return Packed(rows.reshape(-1), valid)


PACKS: Mapping[str, Callable[[Sequence[np.ndarray], int, int], Packed]] = {
    "wrap": wrap,
    "pad": pad,
}


def stretch(
    open_piece: Callable[[int], np.ndarray], starts: np.ndarray, begin: int, end: int
) -> np.ndarray:
    """Items [begin, end) of a concatenation of pieces, opening those that they lie in alone.

    Args:
        open_piece: the array (or memory map) of a piece, all of one dimension and one dtype.
        starts: int64[pieces], where each begins in the concatenation.
        begin: first item.
        end: one past the last item.
    """
    parts = []
    index = int(np.searchsorted(starts, begin, side="right")) - 1
    while begin < end:
        offset = begin - int(starts[index])
        part = open_piece(index)[offset : offset + end - begin]
        parts.append(part)
        begin += len(part)
        index += 1
    return np.concatenate(parts)


def block_ranges(blocks: int, step: int) -> Iterator[tuple[int, int]]:
    """[start, stop) ranges of at most `step` blocks that cover `blocks`."""
    for start in range(0, blocks, step):
        yield start, min(start + step, blocks)
