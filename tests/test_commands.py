"""`python -m ddm_jax.COMMAND` ends as its fork does, which the other tests start."""

import pytest

from tests import commands
from tests.commands import RECIPE, assert_one_sentence

# a mistake of each command, as late as can be without work
MISTAKES = {
    "main": [RECIPE, "--config.train.batch_size=12"],
    "sample": ["--workdir=/no/such"],
    "translate": ["--workdir=/no/such", "--text=a"],
    "evaluate": ["--workdir=/no/such"],
    "judge": ["--input=/no/such", "--judge=none"],
    "prepare": ["--source=text:/no/such/*.txt", "--out=/no/such"],
    "convert": [],
    "compare": ["--config=configs/compare_tiny.py", "--workdir=/no/such", "--layouts=dpp"],
    "aot": [RECIPE],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", commands.MODULES)
def test_command_ends_like_its_fork(command):
    options = {"env": commands.EIGHT_DEVICES}
    real = commands.run_for_real(command, *MISTAKES[command], **options)
    forked = commands.run(command, *MISTAKES[command], **options)
    assert_one_sentence(real)
    assert forked == real


@pytest.mark.slow
def test_mistake_in_a_flag_ends_like_in_a_fork():
    flags = [RECIPE, "--config.train.stepz=1"]
    real = commands.run_for_real("main", *flags)
    assert_one_sentence(real)
    assert commands.run("main", *flags) == real


@pytest.mark.slow
def test_real_command_keeps_the_traceback_of_a_bug(tmp_path):
    (tmp_path / "mine.py").write_text("def get_config(): 1 / 0")
    real = commands.run_for_real("main", f"--config={tmp_path}/mine.py")
    assert real.code == 1
    assert "Traceback" in real.stderr
    assert real.stderr.strip().endswith("ZeroDivisionError: division by zero")


def test_every_command_is_started_here():
    scripts = commands.ROOT / "ddm_jax" / "scripts.py"
    named = {line.split('"')[1] for line in scripts.read_text().splitlines() if "partial(_" in line}
    assert named == set(commands.MODULES)
