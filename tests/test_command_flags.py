"""All commands can be imported in one process: each defines its flags only when it runs."""

import importlib

import pytest
from absl import flags
from absl.testing import flagsaver

COMMANDS = ("main", "sample", "translate", "evaluate", "judge", "prepare", "convert")
COMMANDS += ("compare.__main__", "aot.__main__")


@pytest.mark.parametrize("name", COMMANDS)
def test_command_defines_its_flags_only_when_it_runs(name):
    for other in COMMANDS:
        importlib.import_module(f"ddm_jax.{other}")
    before = set(flags.FLAGS)
    with flagsaver.flagsaver():
        importlib.import_module(f"ddm_jax.{name}").define_flags()
        assert set(flags.FLAGS) > before
    assert set(flags.FLAGS) == before
