"""--help has all flags of a command, and examples that it accepts; an overview has all commands."""

import importlib
import re
import shlex
import subprocess
import sys

import pytest
from absl import flags
from absl.testing import flagsaver

import ddm_jax
from ddm_jax import command_help, scripts
from ddm_jax.config import field_type
from ddm_jax.recipes import find_recipe
from tests import commands

EXAMPLE = re.compile(r"^    (.*?python -m ddm_jax\.(\w+)(?:.*\\\n)*.*)$", re.MULTILINE)


@pytest.fixture(params=commands.MODULES)
def command(request):
    return request.param


def own_flags(command):
    """The flags that a command defines."""
    before = set(flags.FLAGS)
    with flagsaver.flagsaver():
        importlib.import_module(commands.MODULES[command]).define_flags()
        return set(flags.FLAGS) - before


def test_help_shows_the_docstring_and_every_flag(command):
    ended = commands.run(command, "--help", "--nonesuch", code=0)
    assert ended.stderr == ""
    module = importlib.import_module(commands.MODULES[command])
    assert ended.stdout.startswith(module.__doc__.strip())
    listed = re.findall(r"^  --(?:\[no\])?(\w+)(?![.\w])", ended.stdout, re.MULTILINE)
    more = {"help", "helpfull", "version"} | ({"help_config"} if "config" in listed else set())
    assert sorted(listed) == sorted(own_flags(command) | more)
    assert max(map(len, ended.stdout.splitlines())) <= 100


def test_examples_of_the_help_have_flags_and_recipes_that_exist(command):
    doc = importlib.import_module(commands.MODULES[command]).__doc__
    examples = EXAMPLE.findall(doc)
    assert examples
    for line, name in examples:
        words = shlex.split(line.replace("\\\n", " "), comments=True)
        for word in words[words.index(f"ddm_jax.{name}") + 1 :]:
            flag, _, value = word.removeprefix("--").partition("=")
            if field := flag.removeprefix("config."):
                assert flag in own_flags(name) or field_type(field)
            assert flag != "config" or find_recipe(value)


def test_defaults_and_words_are_shown():
    text = commands.run("evaluate", "-h", code=0).stdout
    assert "--draws=N                 corruptions of each block" in text
    assert "--protocol=sedd|mdlm|text8" in text
    assert "(default: ema)" in text
    assert text.index("\nOutput:") > text.index("\nSamples of language models:")


def test_version_needs_no_run():
    ended = commands.run("sample", "--version", code=0)
    assert ended.stdout.startswith(f"ddm_jax {ddm_jax.__version__}, jax ")
    assert (ended.stdout.count("\n"), ended.stderr) == (1, "")


def test_reader_may_close_the_pipe():
    shown = "import sys; from ddm_jax.command_help import show; show('x\\n' * 100_000)"
    done = subprocess.run(
        f'{sys.executable} -c "{shown}" | head -n 1', shell=True, capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"x\n", b"")


@pytest.mark.slow
def test_reader_of_a_result_may_close_the_pipe():
    code = "from ddm_jax import cli; cli.run(lambda argv: print('x\\n' * 100_000))"
    done = subprocess.run(
        f'{sys.executable} -c "{code}" | head -n 1', shell=True, capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"x\n", b"")


def test_helpfull_stays_that_of_absl():
    assert "--[no]only_check_args" in commands.run("judge", "--helpfull").stdout


@pytest.mark.parametrize(
    ("word", "remedy"),
    [("sampel", "use `python -m ddm_jax.sample`"), ("xyz", "`python -m ddm_jax` lists")],
)
def test_command_is_no_argument(monkeypatch, capsys, word, remedy):
    monkeypatch.setattr(sys, "argv", ["ddm-jax", word, "--workdir=work/demo"])
    with pytest.raises(SystemExit) as ended:
        scripts.overview()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {word} is not an argument of ddm_jax: {remedy}")


def test_overview_names_every_command_and_imports_none(monkeypatch):
    monkeypatch.setenv("COLUMNS", "90")
    text = command_help.overview()
    assert set(re.findall(r"^  python -m ddm_jax\.(\w+)", text, re.MULTILINE)) == {
        *commands.MODULES
    }
    code = "import sys; from ddm_jax.__main__ import overview; print(overview()); "
    code += "sys.exit('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == text + "\n"
