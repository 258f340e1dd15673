"""Runs the cells that are not finished, each in a process of its own, and says how far they are.

A cell that fails stops nothing. SIGTERM and Ctrl-C are passed on, so that the cells save and stop.
The process of a cell holds a lock on its folder: where this program was killed and its cells live
on, or another comparison shares the folder, no cell is run by two.
"""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

from tqdm import tqdm

from ddm_jax.compare.cells import Cell, expected_seconds, seconds_of, write_cell
from ddm_jax.errors import UserError
from ddm_jax.runs.files import read_metrics
from ddm_jax.runs.interrupt import Interrupt

_POLL = 0.2  # seconds between two looks at the cells
_SAY_EVERY = 20.0  # seconds between two lines, where there is no terminal
_LAST_LINES = 8  # of the log of a cell that ended badly


@dataclass(frozen=True)
class Started:
    """A cell with its process, when it began, and whether it goes on from before."""

    cell: Cell
    process: subprocess.Popen
    lock: TextIO
    begin: float
    resumed: bool
    at_once: int


def run_cells(cells: Sequence[Cell], at_once: int) -> bool:
    """Runs all that are not finished; True if they were, or failed, and nobody stopped it.

    at_once: processes that run at the same time.
    """
    waiting, running = [], []
    for cell in cells:
        try:
            if cell.mistake:
                raise UserError(cell.mistake)
            if not cell.is_finished():
                write_cell(cell)
                waiting.append(cell)
        except UserError as error:
            _failed(cell, f"{error}")
    with Interrupt() as interrupt, _Progress(cells, at_once) as progress:
        try:
            told = False
            while running or (waiting and not interrupt.received):
                while len(running) < at_once and not interrupt.received:
                    if (started := _start_one(waiting, at_once)) is None:
                        break
                    running.append(started)
                if interrupt.received and not told:
                    told = True
                    progress.say("Stopping: the cells that run save what they have.")
                    for one in running:
                        one.process.terminate()
                for one in [r for r in running if r.process.poll() is not None]:
                    running.remove(one)
                    progress.say(_ended(one))
                progress.show(waiting, running)
                time.sleep(_POLL)
        finally:
            for one in running:  # only after an error, or a second Ctrl-C
                one.process.send_signal(signal.SIGINT)
        return not interrupt.received


def _start_one(waiting: list[Cell], at_once: int) -> Started | None:
    """Starts the first cell that nobody runs, and takes it from the list; None if there is none."""
    for cell in list(waiting):
        lock = (cell.folder / f".lock{cell.suffix}").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            continue
        except OSError:
            pass  # a file system without locks
        waiting.remove(cell)
        with suppress(UserError):  # which the cell will say itself
            if cell.is_finished():  # somebody else's process has done it
                lock.close()
                continue
        return _start(cell, lock, at_once)
    return None


def _start(cell: Cell, lock: TextIO, at_once: int) -> Started:
    resumed = (cell.folder / "metrics.jsonl").exists()
    with (cell.folder / f"log{cell.suffix}.txt").open("a", encoding="utf-8") as log:
        log.write(f"$ {cell.shown}\n")
        log.flush()
        process = subprocess.Popen(
            cell.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **cell.recipe.environment(), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches it once, from here
            pass_fds=(lock.fileno(),),  # the lock lasts as long as it does
        )
    return Started(cell, process, lock, time.monotonic(), resumed, at_once)


def _ended(one: Started) -> str:
    """Records how a cell ended; a line on it."""
    cell, code = one.cell, one.process.returncode
    seconds = time.monotonic() - one.begin
    one.lock.close()
    try:
        finished = cell.is_finished()
    except UserError as error:  # the recipe has changed since this program read it
        return _failed(cell, str(error), code)
    if finished:
        whole = not one.resumed
        write_cell(cell, code=code, seconds=seconds, whole=whole, at_once=one.at_once)
        return f"{cell.name}: finished in {seconds:.0f} s"
    if code in (0, -signal.SIGTERM):
        write_cell(cell)
        return f"{cell.name}: stopped"
    return _failed(cell, _reason(cell, code), code)


def _failed(cell: Cell, reason: str, code: int = 2) -> str:
    write_cell(cell, code=code, reason=reason)
    return f"{cell.name}: failed: {reason}"


def _reason(cell: Cell, code: int) -> str:
    """The sentence of a user's error, or the last lines of the log."""
    log = cell.folder / f"log{cell.suffix}.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    if code == 2 and (said := [line for line in lines if line.startswith("error: ")]):
        return said[-1].removeprefix("error: ")
    died = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    last = [line for line in lines if line.strip() and not line.startswith("$ ")]
    return "\n".join([f"{died}; the last lines of {log}:", *last[-_LAST_LINES:]])


class _Progress:
    """Cells done, the loss and speed of one that runs, and the time left."""

    def __init__(self, cells: Sequence[Cell], at_once: int):
        self._cells, self._at_once = cells, at_once
        self._bar = tqdm(
            total=len(cells),
            disable=not sys.stderr.isatty(),
            unit="cell",
            bar_format="{n_fmt}/{total_fmt} cells |{bar:10}| {desc}",
            dynamic_ncols=True,
        )
        self._said = 0.0

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        tqdm.write(text, file=sys.stderr)

    def show(self, waiting: Sequence[Cell], running: Sequence[Started]) -> None:
        """Moves the bar, or says a line where one is due."""
        now = time.monotonic()
        if self._bar.disable and now - self._said < _SAY_EVERY:
            return
        self._said = now
        done = len(self._cells) - len(waiting) - len(running)
        parts = [_current(one.cell) for one in running] or ["waiting for another process"]
        parts.append(self._left(waiting, running))
        if self._bar.disable:
            self.say(f"{done}/{len(self._cells)} cells; {'; '.join(parts)}")
        else:
            self._bar.set_description_str("; ".join(parts), refresh=False)
            self._bar.update(done - self._bar.n)
            self._bar.refresh()

    def _left(self, waiting: Sequence[Cell], running: Sequence[Started]) -> str:
        known = seconds_of(self._cells)
        left = 0.0
        for cell, spent in [
            *((cell, 0.0) for cell in waiting),
            *((one.cell, time.monotonic() - one.begin) for one in running),
        ]:
            expected = expected_seconds(cell, known, self._cells)
            if expected is None:
                return "time left: known after the first cell"
            left += max(0.0, expected - spent)
        return f"about {tqdm.format_interval(left / self._at_once)} left"


def _current(cell: Cell) -> str:
    """A cell, its step, loss and speed, from its metrics.jsonl."""
    steps = cell.config.train.steps
    with suppress(OSError, ValueError):
        logs = [r for r in read_metrics(cell.folder / "metrics.jsonl") if "tokens_per_s" in r]
        if logs:
            r = logs[-1]
            return (
                f"{cell.name} step {r['step']:.0f}/{steps}, loss {r['loss']:.3f}, "
                f"{r['tokens_per_s']:,.0f} tokens/s"
            )
    log = cell.folder / f"log{cell.suffix}.txt"
    with suppress(OSError):
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        if compiled := [x for x in lines if re.match(r"Compiled|Starting|Going on", x)]:
            return f"{cell.name}: {compiled[-1].split(' in ')[0]}"
    return f"{cell.name}: starting"
