import ctypes
import platform
import resource
from pathlib import Path

import pytest

from ddm_jax.training.programs import release_freed_memory

PIECE, PIECES = 1000, 100_000  # bytes; small enough to come from the heap of malloc


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has malloc_trim")
def test_freed_memory_goes_back():
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes, libc.free.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    pieces = [libc.malloc(PIECE) for _ in range(PIECES)]
    for piece in pieces:
        ctypes.memset(piece, 1, PIECE)
    last = pieces.pop()  # on top: what lies below it is kept
    for piece in pieces:
        libc.free(piece)
    before = resident()
    release_freed_memory()
    assert before - resident() > PIECE * PIECES / 2
    libc.free(last)
