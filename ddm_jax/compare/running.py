"""Runs the cells that are not finished, each in a process of its own.

A cell that fails does not stop the others. SIGTERM and Ctrl-C are passed on to the cells, which
save and stop. The process of a cell holds a lock on the cell's folder, so that no cell is run
twice at the same time: neither when this program was killed while its cells live on, nor when two
comparisons share the folder.
"""

import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TextIO

from ddm_jax.compare.cell_progress import CellProgress
from ddm_jax.compare.cells import Cell, write_cell
from ddm_jax.errors import UserError
from ddm_jax.runs.interrupt import Interrupt

POLL = 0.2  # seconds between two looks at the cells
# return codes of a cell that saved and stopped after a signal, or was not yet able to save
_STOPPED = {code for s in (signal.SIGINT, signal.SIGTERM) for code in (128 + s, -s)}
_LAST_LINES = 8  # of the log of a cell that failed, which are reported


@dataclass(frozen=True)
class RunningCell:
    """A cell with its process.

    Attributes:
      cell: the cell.
      process: that trains it.
      lock: on its folder; the process has inherited it.
      begin: time.monotonic() at its start.
      resumed: whether it resumes an earlier run.
      at_once: cells that may run at the same time.
    """

    cell: Cell
    process: subprocess.Popen
    lock: TextIO
    begin: float
    resumed: bool
    at_once: int


def run_cells(cells: Sequence[Cell], at_once: int) -> bool:
    """Runs all cells that are not finished.

    Args:
      cells: of the comparison.
      at_once: processes that run at the same time.

    Returns:
      False if a signal stopped it; True if all cells have finished or failed.
    """
    waiting = _unfinished(cells)
    running: list[RunningCell] = []
    with Interrupt() as interrupt, CellProgress(cells, at_once) as progress:
        try:
            stopping = False
            while running or (waiting and not interrupt.received):
                while len(running) < at_once and not interrupt.received:
                    if (started := _start_one(waiting, at_once)) is None:
                        break
                    running.append(started)
                if interrupt.received and not stopping:
                    stopping = True
                    progress.say("Stopping: the running cells save what they have.")
                    for one in running:
                        one.process.terminate()
                for one in [r for r in running if r.process.poll() is not None]:
                    running.remove(one)
                    progress.say(_record_end(one))
                progress.show(waiting, [(one.cell, one.begin) for one in running])
                time.sleep(POLL)
        finally:
            for one in running:  # only after an error, or a second Ctrl-C
                one.process.send_signal(signal.SIGINT)
        return not interrupt.received


def _unfinished(cells: Sequence[Cell]) -> list[Cell]:
    """The cells to run; one that cannot run is recorded as failed."""
    waiting = []
    for cell in cells:
        try:
            cell.require_config()
            if not cell.is_finished():
                write_cell(cell)
                waiting.append(cell)
        except UserError as error:
            _record_failure(cell, str(error))
    return waiting


def _start_one(waiting: list[Cell], at_once: int) -> RunningCell | None:
    """Starts the first cell that no process runs, and removes it from `waiting`.

    Returns:
      None if there is no such cell.
    """
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
        with suppress(UserError):  # the process of the cell will report it
            if cell.is_finished():  # by a process of another comparison
                lock.close()
                continue
        return _start(cell, lock, at_once)
    return None


def _start(cell: Cell, lock: TextIO, at_once: int) -> RunningCell:
    resumed = (cell.folder / "metrics.jsonl").exists()
    with cell.log_file.open("a", encoding="utf-8") as log:
        log.write(f"$ {cell.shell_command}\n")
        log.flush()
        process = subprocess.Popen(
            cell.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **cell.recipe.environment(), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches it once, from here
            pass_fds=(lock.fileno(),),  # the lock lasts as long as the process
        )
    return RunningCell(cell, process, lock, time.monotonic(), resumed, at_once)


def _record_end(one: RunningCell) -> str:
    """Records how a cell ended; returns a line on it."""
    cell, code = one.cell, one.process.returncode
    seconds = time.monotonic() - one.begin
    one.lock.close()
    try:
        finished = cell.is_finished()
    except UserError as error:  # the recipe has changed since this program read it
        return _record_failure(cell, str(error), code)
    if finished:
        whole = not one.resumed
        write_cell(cell, code=code, seconds=seconds, whole=whole, at_once=one.at_once)
        return f"{cell.name}: finished in {seconds:.0f} s"
    if code in _STOPPED:
        write_cell(cell)
        return f"{cell.name}: stopped"
    return _record_failure(cell, _failure_reason(cell, code), code)


def _record_failure(cell: Cell, reason: str, code: int = 2) -> str:
    """Records a failed cell; returns a line on it."""
    write_cell(cell, code=code, reason=reason)
    return f"{cell.name}: failed: {reason}"


def _failure_reason(cell: Cell, code: int) -> str:
    """The sentence of a UserError, or the last lines of the log."""
    lines = cell.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
    if code == 2 and (said := [line for line in lines if line.startswith("error: ")]):
        return said[-1].removeprefix("error: ")
    died = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    last = [line for line in lines if line.strip() and not line.startswith("$ ")]
    return "\n".join([f"{died}; the last lines of {cell.log_file}:", *last[-_LAST_LINES:]])
