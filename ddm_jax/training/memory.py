"""Memory of the host."""

import ctypes
import sys


def give_back_memory() -> None:
    """Returns freed memory to the system where the C library can (glibc); elsewhere nothing.

    A compiler frees hundreds of megabytes that malloc would keep, beside the step's own.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
