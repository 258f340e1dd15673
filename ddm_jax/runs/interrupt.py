"""Graceful shutdown, checked once per step; all processes stop at the same step."""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax import Array

from ddm_jax.parallel import processes


class Interrupt:
    """Turns the first SIGTERM or Ctrl-C into `received`; the second Ctrl-C ends the program.

    Outside the main thread, where Python cannot handle signals, it changes nothing and never
    receives one.
    """

    def __enter__(self) -> "Interrupt":
        self.received = False
        self._asked: Array | None = None
        caught = (signal.SIGTERM, signal.SIGINT) if _is_main_thread() else ()
        self._before = {s: signal.signal(s, self._on) for s in caught}
        return self

    def __exit__(self, *_: Any) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)

    def agreed(self) -> bool:
        """Whether to stop; call it once per step in all processes, which get the same answer.

        With several processes, the answer is to what they had received at the previous call, so
        that none has to wait for it while devices compute.
        """
        if jax.process_count() == 1:
            return self.received
        before, self._asked = self._asked, processes.start_max_over_processes(self.received)
        return before is not None and bool(before)

    def _on(self, which: int, frame: FrameType | None) -> None:
        if self.received and which == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
