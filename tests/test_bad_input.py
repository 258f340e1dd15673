"""Bad input to `python -m ddm_jax.main` ends in one sentence; bugs keep their traceback.

What a work directory is refused for: tests/runs/test_record.py.
"""

import pytest

from ddm_jax.objectives import OBJECTIVES
from tests import commands
from tests.commands import RECIPE, assert_one_sentence


@pytest.fixture
def run(tmp_path):
    """run(*args) -> Ended, on eight devices; without a --workdir among them it is tmp_path/run."""
    return lambda *args: commands.run(
        "main", f"--workdir={tmp_path / 'run'}", *args, env=commands.EIGHT_DEVICES
    )


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
        "seed, plugins, model, process",
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
    "unknown flag": (["--n=2"], "--n is unknown: --help lists all flags"),
    "flag with a typing error": (["--wrkdir=x"], "--wrkdir is unknown: did you mean --workdir?"),
    "field without config": (["--train.steps=5"], "is set by --config.train.steps=VALUE"),
    "recipe with a typing error": (["--config=mdlm_tyni"], "e.g. --config=mdlm_tiny"),
    "recipe like no other": (["--config=xyz"], "e.g. --config=radd_tiny"),
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
        ("config.nonesuch = 3", "--help_config lists them"),
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
    "empty file": ("text:{}/text", b"", "/text is empty", "have text"),
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
    args = small_data(tmp_path, f"text:{tmp_path}/text")
    args += overrides(data__validation_fraction=0, data__test_fraction=0)
    ended = run(RECIPE, *args)
    last = ended.stderr.splitlines(keepends=True)[-1]
    assert_one_sentence(ended._replace(stderr=last), "validation split", "validation_fraction")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("field", "value", "has"),
    [("tokenizer", "gpt2", "prepared with bytes"), ("length", 64, "length=16")],
)
def test_prepared_set_unlike_the_config_is_refused(run, letters_set, field, value, has):
    same = {"source": letters_set.folder, "tokenizer": "bytes", "length": 16}
    settings = {f"data__{name}": setting for name, setting in (same | {field: value}).items()}
    ended = run(RECIPE, *overrides(**settings))
    assert_one_sentence(ended, f"data.{field}={value}", str(letters_set.folder), has)
