"""A prepared set appears at once or never: built in a temporary folder, renamed when done."""

import contextlib
import fcntl
import importlib.metadata
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddm_jax.data.sets.text import MARKER, is_prepared
from ddm_jax.errors import UserError


def check_free(out: Path) -> None:
    """Refuses to build over what is not a finished set; an empty folder may be there.

    Raises:
        UserError: something else is there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"out={out} exists and is not a finished set: remove it or choose another folder."
        )


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """Within it, no other process that sees the folder prepares `out`; waits until that is so.

    Where the file system has no locks, each prepares its own, and the first to finish is read.

    Raises:
        UserError: the lock, a file beside `out`, cannot be made.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = (out.parent / f".{out.name}.lock").open("w")
    except OSError as error:
        raise _not_made(out, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process, which prepares {out}", file=sys.stderr)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass
        yield


@contextlib.contextmanager
def temporary_sibling(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, on the same file system; removed whatever happens.

    Raises:
        UserError: it cannot be made.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.unfinished-", dir=out.parent))
    except OSError as error:
        raise _not_made(out, error) from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def publish(built: Path, out: Path, description: Mapping[str, Any]) -> None:
    """Writes the marker of a finished set and renames the folder to `out`."""
    record = {"package_version": _package_version(), **description}
    (built / MARKER).write_text(json.dumps(record, indent=2) + "\n")
    try:
        built.rename(out)
    except OSError:
        # Another process may have prepared the same set in the meantime; its copy is as good.
        if not is_prepared(out):
            raise


def _not_made(out: Path, error: OSError) -> UserError:
    return UserError(f"{out} cannot be made ({error.strerror}): choose another data.root or out.")


def _package_version() -> str:
    try:
        return importlib.metadata.version("ddm_jax")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
