"""A run that a test stops: it holds at a step until the test has sent its signal."""

import os
import time
from pathlib import Path


def hold_steps() -> None:
    """For `before` of tests/commands.py, with the environment variables HOLD_AT and RELEASE.

    The step HOLD_AT, and its log, wait until the file RELEASE exists. Only from then on does the
    watchdog count, so that no test depends on the speed of the machine.
    """
    from ddm_jax.parallel.processes import Watchdog
    from ddm_jax.runs.progress import Progress

    first, release = int(os.environ["HOLD_AT"]), Path(os.environ["RELEASE"])
    tick, check = Progress.tick, Watchdog._check

    def wait_for_release():
        while not release.exists():
            time.sleep(0.01)

    def held_tick(self, step):
        if step >= first:
            wait_for_release()
        tick(self, step)

    def check_after_release(self):
        wait_for_release()
        self._allow(self._timeout)
        check(self)

    Progress.tick, Watchdog._check = held_tick, check_after_release
