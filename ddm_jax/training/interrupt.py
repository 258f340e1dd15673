"""A wish to stop, heard between two steps."""

import signal
from types import FrameType
from typing import Any


class Interrupt:
    """Turns the first SIGTERM or Ctrl-C into `received`; the second Ctrl-C ends the program."""

    def __enter__(self) -> "Interrupt":
        self.received = False
        self._before = {s: signal.signal(s, self._on) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: Any) -> None:
        for which, handler in self._before.items():
            signal.signal(which, handler)

    def _on(self, which: int, frame: FrameType | None) -> None:
        if self.received and which == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = True
