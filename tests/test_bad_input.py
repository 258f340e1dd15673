"""Bad input to `python -m ddm_jax.main` ends in one sentence; bugs keep their traceback.

Most command lines run in a fork of a process that has imported `ddm_jax.main` already, which takes
50 ms instead of 4 s; some run for real, and must say the same.
"""

import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from configs.radd_tiny import get_config
from ddm_jax.config import resolve
from ddm_jax.data.build.text import prepare_text
from ddm_jax.data.sets.text import TextSpec
from ddm_jax.errors import UserError
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.runs.record import write_record
from ddm_jax.settle import settle

ROOT = Path(__file__).parents[1]
RECIPE = "--config=configs/radd_tiny.py"
LONGEST = 400  # characters of a message, past which nobody reads it


class Ended(NamedTuple):
    code: int
    stdout: str
    stderr: str


def _main(argv, folder):
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), descriptor)
    os.chdir(ROOT)
    sys.argv = ["main.py", *argv]
    from ddm_jax import cli, main

    cli.run(main.main, main.define_flags)


@pytest.fixture
def run(tmp_path):
    """run(*args) -> Ended, in a fork; without a --workdir among them it is tmp_path/run."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ddm_jax.main"])

    def run(*args):
        folder = tmp_path / "output"
        folder.mkdir()
        process = context.Process(target=_main, args=(_with_workdir(args, tmp_path), folder))
        process.start()
        process.join()
        return Ended(process.exitcode, *((folder / n).read_text() for n in ("stdout", "stderr")))

    return run


def run_for_real(tmp_path, *args):
    command = [sys.executable, "-m", "ddm_jax.main", *_with_workdir(args, tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def _with_workdir(args, tmp_path):
    given = any(arg.startswith("--workdir") for arg in args)
    return [*args] if given else [f"--workdir={tmp_path / 'run'}", *args]


def assert_one_sentence(ended, *parts):
    assert ended.code == 2, ended
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.endswith((".\n", "?\n"))
    assert ended.stderr.count("\n") == 1
    assert len(ended.stderr) < LONGEST
    for part in parts:
        assert part in ended.stderr


def overrides(**fields):
    return [f"--config.{name.replace('__', '.')}={value}" for name, value in fields.items()]


COMMAND_LINE = {
    "no recipe": ([], "--config is missing", "--config=configs/radd_tiny.py"),
    "recipe that is not there": (["--config=configs/nope.py"], "configs/nope.py", ".py file that"),
    "recipe of another kind": (["--config=pyproject.toml"], "pyproject.toml", ".py file"),
    "folder for a recipe": (["--config=configs"], "--config=configs", ".py file"),
    "empty recipe": (["--config="], "--config=", ".py file"),
    "override before the recipe": (
        ["--config.train.steps=3", RECIPE],
        "--config.train.steps=3",
        "recipe first",
    ),
    "stray word": ([RECIPE, "fast"], "'fast'", "start with --"),
    "workdir in a bucket": (
        [RECIPE, "--workdir=gs://bucket/run"],
        "--workdir=gs://bucket/run",
        "--config.train.checkpoints=gs://bucket/run",
    ),
    "unknown flag": ([RECIPE, "--workdirr=x"], "'workdirr'", "workdir"),
    "unknown argument": (
        [RECIPE + ":loss=foo"],
        "'loss=foo'",
        "loss=t_dce|t_dse|lambda_dce|ao",
    ),
    "unknown key of an argument": ([RECIPE + ":los=ao"], "'los=ao'", "loss=t_dce|"),
    "unknown field": (
        [RECIPE, "--config.train.stepz=3"],
        "config.train.stepz",
        "did you mean steps?",
        "steps, batch_size,",
    ),
    "unknown section": (
        [RECIPE, "--config.trian.steps=3"],
        "config.trian",
        "did you mean train?",
        "seed, model, process",
    ),
    "section for a field": ([RECIPE, "--config.train=3"], "config.train is a section", "steps,"),
    "field for a section": (
        [RECIPE, "--config.seed.x=3"],
        "config.seed.x",
        "config.seed is a value",
    ),
    "word for an int": (
        [RECIPE, "--config.train.steps=abc"],
        "config.train.steps='abc'",
        "whole number",
    ),
    "fraction for an int": (
        [RECIPE, "--config.train.steps=1.5"],
        "config.train.steps='1.5'",
        "whole number",
    ),
    "missing value": ([RECIPE, "--config.train.steps", "--json"], "train.steps='--json'"),
    "word for a float": ([RECIPE, "--config.optim.lr=x"], "config.optim.lr='x'", "a number"),
    "word for an option": ([RECIPE, "--config.schedule.eps=x"], "schedule.eps='x'", "a number"),
    "word for a bool": ([RECIPE, "--config.model.tied_head=x"], "tied_head='x'", "true or false"),
    "too small": ([RECIPE, "--config.train.steps=0"], "config.train.steps=0", "at least 1"),
    "too large": ([RECIPE, "--config.optim.b1=2"], "config.optim.b1=2.0", "from 0 to 1"),
    "not finite": ([RECIPE, "--config.optim.lr=inf"], "config.optim.lr=inf", "finite number"),
}


@pytest.mark.parametrize("case", COMMAND_LINE)
def test_bad_command_line_ends_in_one_sentence(run, case):
    args, *parts = COMMAND_LINE[case]
    assert_one_sentence(run(*args), *parts)


TOGETHER = {
    "objective": (
        overrides(objective__name="foo"),
        "config.objective.name='foo'",
        ", ".join(sorted(OBJECTIVES)),
    ),
    "estimator": (overrides(eval__estimator="foo"), "config.eval.estimator='foo'", "radd_ao"),
    "schedule": (overrides(schedule__name="foo"), "config.schedule.name='foo'", "log_linear"),
    "process": (overrides(process__name="foo"), "config.process.name='foo'", "absorbing"),
    "sampler": (overrides(sampler__name="foo"), "config.sampler.name='foo'", "ancestral"),
    "layout": (overrides(layout__name="foo"), "config.layout.name='foo'", "dp"),
    "attention": (
        overrides(model__attention="x"),
        "model.attention='x'",
        "auto, plain, frugal, xla, cudnn",
    ),
    "option of another schedule": (
        overrides(schedule__k=3),
        "config.schedule.k does not apply",
        "'log_linear', which has eps",
    ),
    "time for a network without": (
        overrides(model__time="adaln"),
        "config.model.time='adaln'",
        "'radd_t_dce'",
        "use 'none'",
    ),
    "process of another objective": (
        overrides(process__name="uniform"),
        "config.process.name='uniform'",
        "'radd_t_dce'",
        "use 'absorbing'",
    ),
    "sampler of another objective": (
        overrides(sampler__name="blockwise"),
        "config.sampler.name='blockwise'",
        "'radd_t_dce'",
        "use one of event_driven, ancestral",
    ),
    "option of another objective": (
        overrides(objective__block_size=4),
        "config.objective.block_size does not apply",
        "'radd_t_dce', which has no options",
    ),
    "heads": (overrides(model__heads=3), "width=128", "config.model.heads=3", "multiple of 6"),
    "micro-batches": (
        overrides(train__batch_size=32, train__microbatches=3),
        "batch_size=32",
        "microbatches=3",
    ),
    "devices": (overrides(train__batch_size=12), "batch_size", "12", "8 devices", "multiple of 8"),
    "micro-batches over devices": (
        overrides(train__batch_size=32, train__microbatches=8),
        "=4",
        "8 devices",
    ),
    "eval over devices": (overrides(eval__batch_size=12), "config.eval.batch_size=12", "8 devices"),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_parts_that_do_not_fit_end_in_one_sentence(run, case):
    args, *parts = TOGETHER[case]
    assert_one_sentence(run(RECIPE, *args), *parts)


def recipe(tmp_path, line):
    """A recipe whose fourth line is `line`."""
    path = tmp_path / "mine.py"
    path.write_text(
        "from ddm_jax.config import defaults\n"
        "def get_config(arg=''):\n"
        "    config = defaults()\n"
        f"    {line}\n"
        "    return config\n"
    )
    return f"--config={path}"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("config.train.stepz = 3", "did you mean steps?"),
        ("config.trian.steps = 3", "did you mean train?"),
        ("config.train.update({'stepz': 3})", "did you mean steps?"),
        ("config.nonesuch = 3", "ddm_jax/config.py"),
        ("config.train.steps = 'many'", "wrong type: give a whole number"),
        ("config.optim.lr = 'high'", "wrong type: give a number"),
        ("config.schedule.eps = 'low'", "wrong type: give a number"),
    ],
)
def test_mistake_in_a_recipe_is_named_with_its_line(run, tmp_path, line, hint):
    ended = run(recipe(tmp_path, line), "--config.seed=1")
    assert_one_sentence(ended, f"mine.py, line 4: `{line}`", hint)


@pytest.mark.parametrize(
    ("text", "args", "hint"),
    [
        ("x = 1", "", "has no attribute 'get_config'"),
        ("def get_config(): pass", ":a=b", "takes 0 positional arguments"),
        ("def get_config(): return {'train': 3}", "", "get_config returns dict"),
    ],
)
def test_file_that_is_no_recipe_is_named(run, tmp_path, text, args, hint):
    (tmp_path / "mine.py").write_text(text)
    assert_one_sentence(run(f"--config={tmp_path}/mine.py{args}"), "is not a recipe", hint)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("int('x')", "ValueError: invalid literal"),
        ("len(3)", "TypeError: object of type 'int'"),
        ("None.steps", "AttributeError: 'NoneType'"),
        ("{}['steps']", "KeyError: 'steps'"),
        ("open('/nowhere')", "FileNotFoundError"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_bug_in_a_recipe_keeps_its_traceback(run, tmp_path, line, error):
    ended = run(recipe(tmp_path, line))
    assert ended.code == 1
    assert "Traceback" in ended.stderr
    assert 'mine.py", line 4' in ended.stderr
    assert error in ended.stderr


def small_data(tmp_path, source):
    """Settings under which a few kilobytes are enough, prepared in tmp_path/root."""
    root = tmp_path / "root"
    return overrides(data__source=source, data__tokenizer="bytes", data__length=32, data__root=root)


DATA = {
    "glob of nothing": ("text:{}/*.txt", None, "/*.txt matches no file", "give a path"),
    "empty file": ("text:{}/text", b"", "/text is empty", "remove it"),
    "not UTF-8": ("text:{}/text", "été ".encode("latin1") * 2000, "/text", "not UTF-8"),
    "jsonl without text": ("jsonl:{}/text", b'{"txt": "a"}\n', "/text:1", '"text"', "txt"),
    "jsonl that is not JSON": ("jsonl:{}/text", b'{"text": "a"}\nb\n', "/text:2", "not JSON"),
    "unknown kind": ("foo:bar", None, "data.source='foo:bar'", "embedded, text:GLOB, jsonl:GLOB"),
    "no such folder": ("no/such", None, "data.source='no/such'", "folder of a prepared set"),
    "too little text": ("text:{}/text", b"to be", "data.length=32", "add text"),
}


@pytest.mark.parametrize("case", DATA)
def test_bad_data_ends_in_one_sentence(run, tmp_path, case):
    source, content, *parts = DATA[case]
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    ended = run(RECIPE, *small_data(tmp_path, source.format(tmp_path)))
    message = ended.stderr.split("\n", ended.stderr.count("\n") - 1)[-1]  # after progress bars
    assert_one_sentence(ended._replace(stderr=message), *parts)
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run").exists()


def test_unknown_tokenizer_ends_in_one_sentence(run, tmp_path):
    ended = run(RECIPE, *overrides(data__tokenizer="gpt9", data__root=tmp_path / "root"))
    assert_one_sentence(ended, "data.tokenizer='gpt9'", "sentencepiece:VOCAB_SIZE", "gpt2, bytes")


@pytest.mark.parametrize("source", ["tfds:lm1b", "hf:owner/name"])
def test_set_that_is_not_there_names_the_command_that_prepares_it(run, tmp_path, source):
    ended = run(RECIPE, *small_data(tmp_path, source))
    command = f"run `python -m ddm_jax.prepare --source={source} --tokenizer=bytes --length=32"
    assert_one_sentence(ended, f"data.source={source} is not prepared", command, "--out=")


def test_text_without_a_held_out_block_is_refused_before_training(run, tmp_path):
    (tmp_path / "text").write_text("to be or not to be " * 100)
    args = [*small_data(tmp_path, f"text:{tmp_path}/text"), "--config.data.validation_fraction=0"]
    ended = run(RECIPE, *args)
    last = ended.stderr.splitlines(keepends=True)[-1]
    assert_one_sentence(ended._replace(stderr=last), "validation split", "validation_fraction")
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    lines = "".join(json.dumps({"text": f"{i} bottles of beer " * 4}) + "\n" for i in range(100))
    (folder / "text.jsonl").write_text(lines)
    spec = TextSpec(f"jsonl:{folder}/text.jsonl", "bytes", 32)
    return prepare_text(spec, folder / "set", progress=False)


@pytest.mark.parametrize(
    ("field", "value", "has"),
    [("tokenizer", "gpt2", "prepared with bytes"), ("length", 64, "length=32")],
)
def test_prepared_set_unlike_the_config_is_refused(run, prepared, field, value, has):
    same = {"source": prepared.folder, "tokenizer": "bytes", "length": 32}
    settings = {f"data__{name}": setting for name, setting in (same | {field: value}).items()}
    ended = run(RECIPE, *overrides(**settings))
    assert_one_sentence(ended, f"data.{field}={value}", str(prepared.folder), has)


def config_with(**fields):
    config = get_config()
    for name, value in fields.items():
        section, _, field = name.partition("__")
        config[section][field] = value
    return settle(resolve(config))


# the work directory is looked at before data, which is not there
NO_DATA = "--config.data.source=tfds:nonesuch"


def test_workdir_of_another_config_is_refused_and_kept(run, tmp_path, prepared):
    workdir = tmp_path / "run"
    write_record(workdir, config_with(data__source="tfds:nonesuch", optim__lr=0.125), prepared)
    before = (workdir / "config.json").read_bytes()
    ended = run(RECIPE, NO_DATA, "--config.optim.lr=0.5")
    assert_one_sentence(ended, str(workdir), "config.optim.lr=0.125, not 0.5", "another --workdir")
    assert (workdir / "config.json").read_bytes() == before


@pytest.mark.parametrize("content", [b"{not json", b"[]", b"3", b"{}", b'{"config": 3}', b"\xff"])
def test_workdir_whose_record_is_damaged_is_refused_and_kept(run, tmp_path, content):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_bytes(content)
    ended = run(RECIPE, NO_DATA)
    assert_one_sentence(ended, "run/config.json is not the record of a run", "another --workdir")
    assert (tmp_path / "run" / "config.json").read_bytes() == content


@pytest.mark.parametrize("workdir", ["file", "file/run"])
def test_workdir_that_cannot_be_written_is_named(run, tmp_path, workdir):
    (tmp_path / "file").write_text("mine")
    ended = run(RECIPE, NO_DATA, f"--workdir={tmp_path}/{workdir}")
    assert_one_sentence(
        ended, f"--workdir={tmp_path}/{workdir}", "Not a directory", "give a folder"
    )
    assert (tmp_path / "file").read_text() == "mine"


FREE = {"train__log_every": 7, "train__keep_last": 9, "eval__every": 3, "sampler__num": 1}


@pytest.mark.parametrize("name", FREE)
def test_what_no_number_depends_on_may_change(tmp_path, prepared, name):
    write_record(tmp_path, config_with(), prepared)
    write_record(tmp_path, config_with(**{name: FREE[name]}), prepared)
    section, field = name.split("__")
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["config"][section][field] == FREE[name]


FIXED = {"model__width": 256, "optim__b1": 0.5, "data__length": 48, "objective__name": "radd_ao"}


@pytest.mark.parametrize("name", FIXED)
def test_what_numbers_depend_on_may_not_change(tmp_path, prepared, name):
    write_record(tmp_path, config_with(), prepared)
    with pytest.raises(UserError, match=f"config.{name.replace('__', '.')}="):
        write_record(tmp_path, config_with(**{name: FIXED[name]}), prepared)


def test_run_may_be_prolonged_where_the_learning_rate_is_constant(tmp_path, prepared):
    for decay, steps in (("constant", 10), ("constant", 20)):
        config = config_with(optim__decay=decay, train__steps=steps)
        write_record(tmp_path / "constant", config, prepared)
    write_record(tmp_path / "cosine", config_with(train__steps=10), prepared)
    with pytest.raises(UserError, match=r"config.train.steps=10, not 20"):
        write_record(tmp_path / "cosine", config_with(train__steps=20), prepared)


def test_workdir_of_a_run_on_other_text_is_refused(tmp_path, prepared):
    write_record(tmp_path, config_with(), prepared)
    other_text = dataclasses.replace(prepared, source_fingerprint="0")
    other_ids = dataclasses.replace(prepared.tokenizer, vocab_size=300)
    for other in (other_text, dataclasses.replace(prepared, tokenizer=other_ids)):
        with pytest.raises(UserError, match="other text or another tokenizer"):
            write_record(tmp_path, config_with(), other)


# one of each path through the command line; each takes some seconds
FOR_REAL = {
    "override": COMMAND_LINE["unknown field"][0],
    "parts": [RECIPE, *TOGETHER["devices"][0]],
    "data": [RECIPE, "--config.data.source=foo:bar"],
}


@pytest.mark.parametrize("case", FOR_REAL)
def test_real_process_ends_like_the_fork(run, tmp_path, case):
    real = run_for_real(tmp_path, *FOR_REAL[case])
    assert_one_sentence(real)
    assert real == run(*FOR_REAL[case])


def test_real_process_keeps_the_traceback_of_a_bug(tmp_path):
    real = run_for_real(tmp_path, recipe(tmp_path, "1 / 0"))
    assert real.code == 1
    assert "Traceback" in real.stderr
    assert real.stderr.strip().endswith("ZeroDivisionError: division by zero")
