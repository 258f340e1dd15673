"""Compiled programs of the commands are kept on disk, by jax's persistent compilation cache.

docs/performance.md says what is kept, where, and how to change it.
"""

import hashlib
import os
import platform
import re
import sys
from pathlib import Path

VARIABLE = "JAX_COMPILATION_CACHE_DIR"
FOLDER = "~/.cache/ddm_jax/compiled"
_MIN_SECONDS = 0.2  # programs that compile faster are not kept; jax keeps those above 1 s
_MAX_BYTES = 2 * 2**30  # jax then deletes the programs that have not been used for longest


def keep_compiled_programs() -> None:
    """Switches the cache on, unless the environment variable decides, or the folder is read-only.

    If JAX_COMPILATION_CACHE_DIR is set, even to nothing, all of the cache's settings are jax's.
    """
    if VARIABLE in os.environ or "jax" not in sys.modules:  # a command without jax compiles nothing
        return
    import jax

    try:
        folder = Path(FOLDER).expanduser() / _kind_of_cpu()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home directory
        return
    if os.access(folder, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_SECONDS)
        jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)


def _kind_of_cpu() -> str:
    """A name that only machines with the same instructions share.

    jax's key does not contain them, so that a home directory shared by several kinds of machines
    would give one of them a program with instructions of another.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    instructions = found[1] if found else platform.node()
    return f"{platform.machine()}-{hashlib.sha256(instructions.encode()).hexdigest()[:8]}"
