"""Signals end commands with the code that a shell gives to a program that the signal kills."""

import os
import signal
import sys

import pytest

from ddm_jax import main
from ddm_jax.runs.interrupt import Interrupt, exit_code
from tests import commands
from tests.commands import RECIPE


@pytest.mark.parametrize(("which", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_first_signal_is_kept(which, code):
    with Interrupt() as interrupt:
        assert not interrupt.agreed()
        signal.raise_signal(which)
        assert interrupt.agreed() == which
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.received == which
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert exit_code() == exit_code(which) == code


def interrupt_training():
    """Ctrl-C in a compilation: XLA crashes if Python then ends in its own way."""

    def end(code):
        os.abort()

    def train(*_):
        sys.exit = end
        raise KeyboardInterrupt

    main.train = train


def test_ctrl_c_that_nothing_handles_ends_without_a_traceback(tmp_path):
    ended = commands.run("main", RECIPE, f"--workdir={tmp_path}/run", before=interrupt_training)
    assert ended == (130, "", "Interrupted.\n")
