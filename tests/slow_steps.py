"""A run that a test means to stop: its steps last long enough for a signal to come between two."""

import time


def make_steps_slow() -> None:
    """For `before` of tests/commands.py."""
    from ddm_jax.runs.progress import Progress

    tick = Progress.tick
    Progress.tick = lambda self, step: (time.sleep(0.05), tick(self, step))
