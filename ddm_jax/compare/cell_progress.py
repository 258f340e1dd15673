"""Progress of a comparison: cells done, loss and speed of those that run, and the time left."""

import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from tqdm import tqdm

from ddm_jax.compare.cells import Cell, expected_seconds, seconds_of
from ddm_jax.runs.files import read_metrics

LINE_EVERY = 20.0  # seconds between two lines, if there is no terminal


class CellProgress:
    """A bar in a terminal, otherwise a line every LINE_EVERY seconds."""

    def __init__(self, cells: Sequence[Cell], at_once: int):
        """Shows nothing yet.

        Args:
          cells: all cells of the comparison.
          at_once: cells that run at the same time.
        """
        self._cells, self._at_once = cells, at_once
        self._bar = tqdm(
            total=len(cells),
            disable=not sys.stderr.isatty(),
            unit="cell",
            bar_format="{n_fmt}/{total_fmt} cells |{bar:10}| {desc}",
            dynamic_ncols=True,
        )
        self._last_line = 0.0

    def __enter__(self) -> "CellProgress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        tqdm.write(text, file=sys.stderr)

    def show(self, waiting: Sequence[Cell], running: Sequence[tuple[Cell, float]]) -> None:
        """Updates the bar, or prints a line if one is due.

        Args:
          waiting: cells that have not been started.
          running: each running cell with the time.monotonic() of its start.
        """
        now = time.monotonic()
        if self._bar.disable and now - self._last_line < LINE_EVERY:
            return
        self._last_line = now
        done = len(self._cells) - len(waiting) - len(running)
        parts = [status_of(cell) for cell, _ in running] or ["waiting for another process"]
        spent = [(cell, 0.0) for cell in waiting]
        spent += [(cell, now - begin) for cell, begin in running]
        parts.append(self._time_left(spent))
        if self._bar.disable:
            self.say(f"{done}/{len(self._cells)} cells; {'; '.join(parts)}")
        else:
            self._bar.set_description_str("; ".join(parts), refresh=False)
            self._bar.update(done - self._bar.n)
            self._bar.refresh()

    def _time_left(self, spent: Sequence[tuple[Cell, float]]) -> str:
        """In words, from the seconds that each unfinished cell has already taken."""
        known = seconds_of(self._cells)
        left = 0.0
        for cell, seconds in spent:
            expected = expected_seconds(cell, known, self._cells)
            if expected is None:
                return "time left: known after the first cell"
            left += max(0.0, expected - seconds)
        return f"about {tqdm.format_interval(left / self._at_once)} left"


def status_of(cell: Cell) -> str:
    """A running cell: its step, loss and speed from metrics.jsonl, or how far its start is."""
    with suppress(OSError, ValueError):
        logs = [r for r in read_metrics(cell.folder / "metrics.jsonl") if "tokens_per_s" in r]
        if logs:
            r = logs[-1]
            return (
                f"{cell.name} step {r['step']:.0f}/{cell.require_config().train.steps}, loss "
                f"{r['loss']:.3f}, {r['tokens_per_s']:,.0f} tokens/s"
            )
    with suppress(OSError):
        lines = cell.log_file.read_text(encoding="utf-8", errors="replace").splitlines()
        if known := [x for x in lines if re.match(r"Compil|Starting|Resuming", x)]:
            return f"{cell.name}: {known[-1].split(' in ')[0]}"
    return f"{cell.name}: starting"
