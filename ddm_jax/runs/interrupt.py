"""Graceful shutdown, checked once per step; all processes stop at the same step.

A command that a signal has stopped ends with the exit code that a shell gives to a program that the
signal kills: 130 for Ctrl-C, 143 for SIGTERM.
"""

import signal
import threading
from types import FrameType
from typing import Any

import jax
from jax import Array

from ddm_jax.parallel import processes

_last_signal = 0


def exit_code(which: int | None = None) -> int:
    """The exit code of a command that a signal has stopped.

    Args:
      which: number of the signal; None for the last one that an `Interrupt` received.
    """
    return 128 + (_last_signal if which is None else which)


class Interrupt:
    """Turns the first SIGTERM or Ctrl-C into `received`; the second Ctrl-C ends the program.

    Outside the main thread, where Python cannot handle signals, it changes nothing and never
    receives one.

    Attributes:
      received: number of the first signal; 0 before it.
    """

    def __enter__(self) -> "Interrupt":
        self.received = 0
        self._asked: Array | None = None
        caught = (signal.SIGTERM, signal.SIGINT) if _is_main_thread() else ()
        self._before = {s: signal.signal(s, self._on) for s in caught}
        return self

    def __exit__(self, *_: Any) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)

    def agreed(self) -> int:
        """The signal to stop for, or 0; call it once per step in all processes.

        All get the same answer: the largest number that any of them has received. With several
        processes, it is what they had received at the previous call, so that none has to wait for
        it while devices compute.
        """
        if jax.process_count() == 1:
            return self.received
        before, self._asked = self._asked, processes.start_max_over_processes(self.received)
        return 0 if before is None else int(before)

    def _on(self, which: int, frame: FrameType | None) -> None:
        if self.received and which == signal.SIGINT:
            raise KeyboardInterrupt
        global _last_signal
        self.received = _last_signal = self.received or which


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
