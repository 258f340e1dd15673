"""What a person sees while a command runs: a bar in a terminal, lines elsewhere.

Only process 0 shows anything.
"""

import time
from collections.abc import Mapping

from tqdm import tqdm

from ddm_jax import progress
from ddm_jax.parallel import processes


def say(text: str) -> None:
    """Prints a line to stderr without breaking a bar; process 0 only."""
    if processes.is_first():
        progress.say(text)


class ProgressBar(progress.ProgressBar):
    """The bar of `ddm_jax.progress`, shown by process 0 only."""

    def __init__(self, total: int, done: int = 0, unit: str = "sequence", nested: bool = False):
        """See `ddm_jax.progress.ProgressBar`."""
        super().__init__(total, done, unit, nested=nested, shown=processes.is_first())


class Progress:
    """Loss, tokens/s, step time and time left of training.

    `restart` and `leave_out` keep pauses out of them.
    """

    def __init__(self, start: int, steps: int, tokens_per_step: int):
        self._steps = steps
        self._tokens_per_step = tokens_per_step
        self._bar = progress.make_bar(steps, start, "step", shown=processes.is_first())
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
