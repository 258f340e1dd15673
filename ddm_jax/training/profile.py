"""A trace of some training steps, for `--config.train.profile`: docs/performance.md reads one."""

from pathlib import Path
from typing import Any

import jax

WARM_UP = 5  # steps before: buffers are laid out and the loader has read ahead


class Profile:
    """Traces the steps of this process from WARM_UP + 1 to WARM_UP + steps, none for 0 steps.

    Each process writes its own files, in the format that XProf (TensorBoard) and Perfetto read.
    """

    def __init__(self, folder: Path, steps: int):
        self._folder, self._steps = folder, steps
        self._done, self._tracing = 0, False

    def begin_step(self) -> None:
        """Before a step is started."""
        if self._steps and self._done == WARM_UP:
            self._tracing = True
            jax.profiler.start_trace(self._folder)

    def end_step(self, result: Any) -> str | None:
        """After it: where it was the last to be traced, waits for it and says so."""
        self._done += 1
        if not self._tracing or self._done < WARM_UP + self._steps:
            return None
        jax.block_until_ready(result)
        self.close()
        return f"Traced {self._steps} steps into {self._folder}"

    def close(self) -> None:
        """Ends a trace that has begun."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
