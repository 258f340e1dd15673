"""A prepared set appears as a whole or not at all: built in a temporary folder, renamed when done.

A finished set is reused if it is the one that is asked for.
"""

import contextlib
import dataclasses
import fcntl
import importlib.metadata
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddm_jax.data.sets.folder import MARKER, is_prepared
from ddm_jax.data.sets.kinds import PreparedSet, Spec
from ddm_jax.errors import UserError


def check_free(out: Path) -> None:
    """Refuses to build over anything but an empty folder.

    Raises:
      UserError: something else is there.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"out={out} exists and is not a finished set: remove it or choose another folder."
        )


def check_reusable(prepared: PreparedSet, spec: Spec) -> None:
    """Refuses a finished set that is not what preparing `spec` now would give.

    Raises:
      UserError: it was prepared from another spec, or its text has been edited since.
    """
    for field in dataclasses.fields(spec):
        has, wants = getattr(prepared.spec, field.name), getattr(spec, field.name)
        if has != wants:
            raise UserError(
                f"{prepared.folder} was prepared with {field.name}={has}, not {wants}: choose "
                "another folder."
            )
    if not prepared.has_tokenizer(spec.tokenizer):
        raise UserError(
            f"{prepared.folder} was prepared with another {spec.tokenizer} than the present one: "
            "choose another folder."
        )
    _check_unchanged(prepared)


@contextlib.contextmanager
def exclusive_lock(out: Path) -> Iterator[None]:
    """Within it, no other process that sees the folder prepares `out`; waits for the lock.

    On a file system without locks each process prepares its own set, and the first that finishes
    is the one that is kept.

    Raises:
      UserError: the lock, a file next to `out`, cannot be made.
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
    """Makes a folder next to `out`, on the same file system, and removes it in any case.

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


def _check_unchanged(prepared: PreparedSet) -> None:
    """Refuses a set whose local text has been edited since; text that is gone does not matter."""
    spec = prepared.spec
    try:
        changed = spec.stamp() != prepared.source_stamp
    except UserError:
        return
    # Files that were only copied or touched have another stamp and the same fingerprint.
    if changed and spec.fingerprint() != prepared.source_fingerprint:
        raise UserError(
            f"The text of data.source={spec.source} has changed since {prepared.folder} was "
            "prepared: remove that folder to prepare it again, or give the folder as data.source "
            "to use it as it is."
        )


def _not_made(out: Path, error: OSError) -> UserError:
    return UserError(f"{out} cannot be made ({error.strerror}): choose another data.root or out.")


def _package_version() -> str:
    try:
        return importlib.metadata.version("ddm_jax")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
