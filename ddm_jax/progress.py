"""Progress on stderr: a bar in a terminal, lines elsewhere, so that a log file has whole lines."""

import sys
import time
from typing import Any

from tqdm import tqdm

LINE_EVERY = 30.0  # seconds between lines where the total is unknown


def say(text: str) -> None:
    """Prints a line to stderr without breaking a bar."""
    tqdm.write(text, file=sys.stderr)


class ProgressBar:
    """How many of `total` items are done: a bar in a terminal, a line per tenth elsewhere.

    with ProgressBar(num) as progress:
      progress.update(done, "12.0 evaluations each")
    """

    def __init__(
        self,
        total: int,
        done: int = 0,
        unit: str = "sequence",
        *,
        label: str = "",
        nested: bool = False,
        shown: bool = True,
    ):
        """Starts the clock.

        Args:
          total: items; 0 if unknown, in which case lines are printed every `LINE_EVERY` seconds.
          done: items that were done before, to resume.
          unit: the word for one item; "B" shows bytes as kB, MB and so on.
          label: what is being done, before the numbers.
          nested: whether another bar is shown at the same time, as in training: the bar then goes
            away at the end, and no lines are printed elsewhere.
          shown: whether anything is shown.
        """
        self._total, self._first, self._done, self._said = total, done, done, done
        self._unit, self._label, self._begin = unit, label, time.perf_counter()
        self._said_at = self._begin
        self._lines = shown and not nested and not sys.stderr.isatty()
        self._bar = make_bar(total, done, unit, label, leave=not nested, shown=shown)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def add(self, items: int) -> None:
        """Shows that this many more items are done."""
        self.update(self._done + items)

    def update(self, done: int, numbers: str = "") -> None:
        """Shows that `done` items are done now, and some numbers on them."""
        self._done = done
        if not self._bar.disable:
            self._bar.set_postfix_str(numbers, refresh=False)
            self._bar.update(done - self._bar.n)
        elif self._lines and self._is_due(done):
            self._said, self._said_at = done, time.perf_counter()
            say("  ".join(filter(None, (self._label, self._count(), numbers, self._left()))))

    def _is_due(self, done: int) -> bool:
        if not self._total:
            return time.perf_counter() - self._said_at >= LINE_EVERY
        return done > self._said and (done - self._said >= self._total / 10 or done >= self._total)

    def _count(self) -> str:
        if self._unit == "B":
            counts = [f"{tqdm.format_sizeof(n)}B" for n in (self._done, self._total) if n]
            return "/".join(counts)
        return f"{self._done}{f'/{self._total}' if self._total else ''} {self._unit}s"

    def _left(self) -> str:
        if not self._total:
            return ""
        seconds = time.perf_counter() - self._begin
        rest = max(0, self._total - self._done) * seconds / (self._done - self._first)
        return f"{tqdm.format_interval(rest)} left"


def make_bar(
    total: int, done: int, unit: str, label: str = "", *, leave: bool = True, shown: bool = True
) -> tqdm:
    """Makes tqdm's bar, which is disabled where stderr is not a terminal."""
    return tqdm(
        total=total or None,
        initial=done,
        desc=label or None,
        disable=not (shown and sys.stderr.isatty()),
        unit=unit if unit == "B" else f" {unit}s",
        unit_scale=unit == "B",
        leave=leave,
        dynamic_ncols=True,
    )
