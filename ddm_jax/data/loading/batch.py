"""What a batch is on the host, and which of its rows a process reads."""

from collections.abc import Callable, Sequence

import numpy as np

HostBatch = dict[str, np.ndarray]
RowsOfProcess = Callable[[int], Sequence[int]]  # size of a global batch -> rows of it


def all_rows(size: int) -> range:
    """Returns the rows of a batch that a single process reads: all of them."""
    return range(size)
