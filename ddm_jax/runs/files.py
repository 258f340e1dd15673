"""Files of a run: reading metrics.jsonl, and writing that never leaves a half-written file."""

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The records of a metrics.jsonl; a last line torn by a kill is skipped."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def write_new(path: Path, text: str) -> Path:
    """Writes a new file; where `path` exists, the next free one of NAME-2, NAME-3, ...

    Returns:
      The path that was written.
    """
    free = path
    for number in itertools.count(2):
        try:
            free.touch(exist_ok=False)
            break
        except FileExistsError:
            free = path.with_stem(f"{path.stem}-{number}")
    write_atomically(free, text)
    return free


def write_atomically(path: Path, text: str) -> None:
    """Replaces a text file as a whole: after a kill it is the old one or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Makes a folder that is renamed to `out` at the end, so that `out` is whole or not there."""
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    unfinished.rename(out)
