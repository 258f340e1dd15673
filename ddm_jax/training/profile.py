"""A trace of some training steps (config.train.profile); docs/performance.md reads one."""

from pathlib import Path
from typing import Any

import jax

from ddm_jax.wording import counted

WARM_UP = 5  # steps before the trace: buffers are laid out and the loader has read ahead


class Profile:
    """Traces steps WARM_UP + 1 to WARM_UP + `steps` of this process; nothing if `steps` is 0.

    Each process writes its own files, in the format that XProf (TensorBoard) and Perfetto read.
    """

    def __init__(self, folder: Path, steps: int):
        self._folder, self._steps = folder, steps
        self._done, self._tracing = 0, False

    def begin_step(self) -> None:
        """Call before a step is started."""
        if self._steps and self._done == WARM_UP:
            self._tracing = True
            jax.profiler.start_trace(self._folder)

    def end_step(self, result: Any) -> str | None:
        """Call after a step is started.

        Args:
          result: a pytree of the step's arrays.

        Returns:
          A message if this was the last step of the trace, which has been waited for; else None.
        """
        self._done += 1
        if not self._tracing or self._done < WARM_UP + self._steps:
            return None
        jax.block_until_ready(result)
        self.close()
        return f"Traced {counted(self._steps, 'step')} into {self._folder}"

    def close(self) -> None:
        """Ends the trace, if it has begun."""
        if self._tracing:
            self._tracing = False
            jax.profiler.stop_trace()
