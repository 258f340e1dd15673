"""What a person sees while a command runs: a bar in a terminal, lines elsewhere.

Only process 0 shows anything.
"""

import sys
import time
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from ddm_jax.parallel import processes


def say(text: str) -> None:
    """Prints a line to stderr without breaking a bar; process 0 only."""
    if processes.is_first():
        tqdm.write(text, file=sys.stderr)


class ProgressBar:
    """How many of `total` items are done: a bar in a terminal, a line per tenth elsewhere.

    with ProgressBar(num) as progress:
      progress.update(done, "12.0 evaluations each")
    """

    def __init__(self, total: int, done: int = 0, unit: str = "sequence", nested: bool = False):
        """Starts the clock.

        Args:
          total: items.
          done: items that were done before, to resume.
          unit: the word for one item.
          nested: whether another bar is shown at the same time, as in training: the bar then goes
            away at the end, and no lines are printed elsewhere.
        """
        self._total, self._first, self._said = total, done, done
        self._unit, self._nested, self._begin = unit, nested, time.perf_counter()
        self._bar = _bar(total, done, unit, leave=not nested)

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def update(self, done: int, numbers: str = "") -> None:
        """Shows that `done` items are done now, and some numbers on them."""
        if not self._bar.disable:
            self._bar.set_postfix_str(numbers, refresh=False)
            self._bar.update(done - self._bar.n)
        elif not self._nested and (done - self._said >= self._total / 10 or done >= self._total):
            self._said = done
            seconds = time.perf_counter() - self._begin
            left = tqdm.format_interval((self._total - done) * seconds / (done - self._first))
            parts = (f"{done}/{self._total} {self._unit}s", numbers, f"{left} left")
            say("  ".join(filter(None, parts)))


class Progress:
    """Loss, tokens/s, step time and time left of training.

    `restart` and `leave_out` keep pauses out of them.
    """

    def __init__(self, start: int, steps: int, tokens_per_step: int):
        self._steps = steps
        self._tokens_per_step = tokens_per_step
        self._bar = _bar(steps, start, "step")
        self.restart(start)

    def restart(self, step: int) -> None:
        """Starts a new interval of timing at `step`."""
        self._since, self._begin = step, time.perf_counter()

    def leave_out(self, seconds: float) -> None:
        """Takes a pause that has just ended out of the interval."""
        self._begin += seconds

    def timing(self, step: int) -> dict[str, float]:
        """`step_s` and `tokens_per_s` since the interval began, and begins a new one."""
        step_s = (time.perf_counter() - self._begin) / (step - self._since)
        self.restart(step)
        return {"step_s": step_s, "tokens_per_s": self._tokens_per_step / step_s}

    def tick(self, step: int) -> None:
        """Moves the bar."""
        self._bar.update(step - self._bar.n)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Shows the numbers of a log."""
        loss, rate = f"{values['loss']:.4f}", f"{values['tokens_per_s']:,.0f}"
        if not self._bar.disable:
            self._bar.set_postfix_str(f"loss {loss}, {rate} tokens/s")
            return
        left = tqdm.format_interval((self._steps - step) * values["step_s"])
        step_ms = f"{1e3 * values['step_s']:.0f} ms/step"
        self.say(f"step {step}/{self._steps}  loss {loss}  {rate} tokens/s  {step_ms}  {left} left")

    def say(self, text: str) -> None:
        """Prints a line without breaking the bar."""
        say(text)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        self._bar.close()


def _bar(total: int, done: int, unit: str, leave: bool = True) -> tqdm:
    return tqdm(
        total=total,
        initial=done,
        disable=not (processes.is_first() and sys.stderr.isatty()),
        unit=unit,
        leave=leave,
        dynamic_ncols=True,
    )
