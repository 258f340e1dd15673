"""`python -m ddm_jax.sample` on runs whose weights are known: each checkpoint says one letter.

Most command lines run in this process, one in its own; test_readme.py samples what was trained.
"""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from configs.radd_tiny import get_config
from ddm_jax import cli, run_flags, sample
from ddm_jax.config import resolve
from ddm_jax.data.build.text import prepare
from ddm_jax.data.sets.text import PrepareSpec
from ddm_jax.errors import UserError
from ddm_jax.experiment import make_parts
from ddm_jax.generation import generate
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs import checkpoint
from ddm_jax.runs import run as trained
from ddm_jax.runs.checkpoint import Checkpoints, restore_weights
from ddm_jax.runs.files import write_new
from ddm_jax.runs.progress import ProgressBar
from ddm_jax.runs.record import write_record
from ddm_jax.samplers.signature import Stats
from ddm_jax.settle import fitting_samplers, settle
from ddm_jax.training.optimizer import make_optimizer
from ddm_jax.training.state import init_state

ROOT = Path(__file__).parents[1]
LENGTH = 16
SETTINGS = {
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "data.tokenizer": "bytes",
    "data.length": LENGTH,
    "data.validation_fraction": 0.2,
    "optim.warmup_steps": 1,
    "train.steps": 3,
    "train.batch_size": 8,
    "train.checkpoint_every": 2,
    "eval.batch_size": 8,
    "eval.sequences": 8,
    "eval.draws": 1,
    "sampler.steps": 3,
    "sampler.num": 1,
}
RANDOM = "--temperature=100"  # makes letters of weights that insist on one


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Calls that differ in what is no part of the program share it."""
    options = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    (folder / "text").mkdir()
    for i in range(40):
        (folder / "text" / f"{i}.txt").write_text(f"{i} bottles of beer on the wall " * 10)
    spec = PrepareSpec(f"text:{folder}/text/*.txt", "bytes", LENGTH, validation_fraction=0.2)
    return prepare(spec, folder / "set", progress=False)


def config_of(prepared, **changes):
    config = get_config()
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    for name, value in {**SETTINGS, "data.source": str(prepared.folder), **changes}.items():
        section, field = name.split(".")
        config[section][field] = value
    return settle(resolve(config))


def make_run(workdir, prepared, letters, **changes):
    """A run whose checkpoints hold, in their averaged weights, the letters by step."""
    config = config_of(prepared, **changes)
    write_record(workdir, config, prepared)
    _, _, network = make_parts(config, prepared.tokenizer.vocab_size)
    optimizer = make_optimizer(config.optim, config.train.steps)
    state = init_state(network, optimizer, jax.random.key(0), ("loss",))
    checkpoints = Checkpoints(epath.Path(workdir / "checkpoints"), keep_last=9, keep_every=9)
    for step, letter in letters.items():
        bias = state.ema["head"]["bias"].at[ord(letter)].set(100.0)
        ema = state.ema | {"head": state.ema["head"] | {"bias": bias}}
        checkpoints.save(step, dataclasses.replace(state, ema=ema), {})
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory, prepared):
    """A run that says b at step 2 and a, in its newest checkpoint, at step 10."""
    return make_run(tmp_path_factory.mktemp("run"), prepared, {2: "b", 10: "a"})


def call(*args):
    """What the command line does in this process."""
    with flagsaver.flagsaver():
        sample.define_flags()
        flags.FLAGS(["sample", *map(str, args)])
        sample.main([])


def drawn(out, *args):
    """Calls with --out, and returns the objects that were written."""
    call(f"--out={out}", *args)
    return [json.loads(line) for line in out.read_text().splitlines()]


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_samples_are_printed_and_written_as_promised(run, tmp_path, capsys):
    before = contents(run)
    args = ["--num=3", "--batch_size=2", "--steps=5", "--prefix=So: ", "--suffix=!", "--json"]
    samples = drawn(tmp_path / "made" / "x.jsonl", f"--workdir={run}", *args)
    text = "So: " + "a" * (LENGTH - 5) + "!"
    shared = {
        "workdir": str(run),
        "checkpoint": 10,
        "weights": "ema",
        "sampler": "event_driven",
        "steps": 5,
        "options": {},
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "seed": 0,
        "batch_size": 2,
        "length": LENGTH,
        "prompt": {"prefix": "So: ", "suffix": "!"},
    }
    assert len(samples) == 3
    for line in samples:
        assert line.pop("nfe") in range(1, 6)
        assert line.pop("seconds") > 0
        assert line == {"text": text, "tokens": list(text.encode())} | shared
    out, err = capsys.readouterr()
    *lines, said, last = out.splitlines()
    assert said == f"Wrote 3 samples to {tmp_path}/made/x.jsonl"
    assert lines.count(text) == 3
    assert sum("network evaluations" in line for line in lines) == 3
    result = json.loads(last)
    assert shared.items() <= result.items()
    assert result["num"] == 3
    assert result["out"] == f"{tmp_path}/made/x.jsonl"
    assert 1 <= result["nfe"] <= 5
    assert result["seconds"] > 0
    assert result["tokens_per_s"] == pytest.approx(3 * (LENGTH - 5) / result["seconds"])
    assert "Compiled the sampler in" in err
    assert "2/3 sequences" in err
    assert "tokens/s" in err
    assert contents(run) == before


def test_samples_depend_on_seed_and_place_alone(run, tmp_path):
    """Neither on how many are drawn, nor on the devices that share a batch."""
    args = [f"--workdir={run}", RANDOM, "--steps=2"]
    one, many, other = (
        [line["text"] for line in drawn(tmp_path / f"{num}{seed}", *args, *more)]
        for num, seed in ((1, 7), (5, 7), (2, 8))
        for more in [[f"--num={num}", "--batch_size=2", f"--seed={seed}"]]
    )
    assert len(many) == len(set(many)) == 5
    assert one == many[:1]
    assert not set(other) & set(many)


def test_template_is_kept_and_greedy_draws_are_the_best(run, tmp_path):
    template = tmp_path / "template.txt"
    template.write_text("{{2}}x\n{{3}}y{{}}end\n")
    args = [f"--template={template}", "--temperature=0", "--num=1", "--sampler=ordered"]
    args += ["--option=order=right"]
    (line,) = drawn(tmp_path / "out", f"--workdir={run}", *args)
    assert line["text"] == "aax\naaay" + "a" * 5 + "end"
    assert (line["sampler"], line["options"]) == ("ordered", {"order": "right"})
    assert line["prompt"] == {"template": "{{2}}x\n{{3}}y{{}}end"}


def test_files_that_are_there_are_left_alone(run, tmp_path):
    workdir = shutil.copytree(run, tmp_path / "run")
    samples = workdir / "samples"
    samples.mkdir()
    for i in range(2):
        call(f"--workdir={workdir}", "--num=1", f"--seed={i}")
    first, second = sorted(samples.iterdir(), key=lambda p: len(p.name))
    assert first.name == "00000010-event_driven-3.jsonl"
    assert second.name == "00000010-event_driven-3-2.jsonl"
    assert [json.loads(p.read_text())["seed"] for p in (first, second)] == [0, 1]
    (tmp_path / "a.jsonl").write_text("mine")
    (tmp_path / "a-2.jsonl").write_text("mine too")
    assert write_new(tmp_path / "a.jsonl", "new") == tmp_path / "a-3.jsonl"
    assert [(tmp_path / f"a{i}.jsonl").read_text() for i in ("", "-2", "-3")] == [
        "mine",
        "mine too",
        "new",
    ]


def test_program_is_traced_once_for_all_prompts_and_specs():
    traces = []

    def sampler(apply, params, key, prompt, fixed, process, spec):
        traces.append(spec)
        tokens = jnp.where(
            fixed, prompt, spec.top_k + (9 * spec.temperature + spec.top_p).astype(int)
        )
        return tokens, Stats(jnp.full(len(tokens), spec.steps))

    program = generate.make_program(sampler, apply=None, process=None)
    for steps, temperature, top_k, top_p in (
        (1, 2.0, 0, 1.0),
        (7, 0, 5, 0.5),
        (2**31 - 1, 4, 3, 1),
    ):
        spec = generate.make_spec(steps, temperature, top_k, top_p)
        prompt, fixed = jnp.full((2, 3), top_k), jnp.arange(3) < jnp.full((2, 1), top_k)
        tokens, stats = program({}, jax.random.key(steps), prompt, fixed, spec)
        free = top_k + int(9 * temperature + top_p)
        np.testing.assert_array_equal(tokens, np.where(fixed, prompt, free))
        assert (stats.nfe == steps).all()
    assert len(traces) == 1


def test_averaged_weights_come_back_exactly(tmp_path):
    params = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.ones(4) / 3}}
    state = {"params": jax.tree.map(jnp.zeros_like, params), "ema": params, "step": jnp.int32(4)}
    checkpoints = Checkpoints(tmp_path, 1, 9)
    checkpoints.save(4, state, {})
    checkpoints.close()
    layout = dp(jax.devices()[:4])
    step, read = restore_weights(tmp_path, jax.eval_shape(lambda: params), layout)
    assert step == 4
    jax.tree.map(np.testing.assert_array_equal, read, params)
    assert all(x.sharding == layout.replicated for x in jax.tree.leaves(read))
    for other in ({"a": params["a"], "d": params["a"]}, {"a": params["a"][:1], "b": params["b"]}):
        with pytest.raises(UserError, match=r"None of the checkpoints in .* can be read"):
            restore_weights(tmp_path, jax.eval_shape(lambda other=other: other), layout)


def damage(folder):
    for file in folder.rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_damaged_checkpoint_is_passed_over_and_left_where_it_is(run, tmp_path, caplog, capfd):
    workdir = shutil.copytree(run, tmp_path / "run")
    damage(workdir / "checkpoints" / "10")
    (workdir / "checkpoints" / "11.orbax-checkpoint-tmp").mkdir()  # one that is being written
    before = contents(workdir)
    (line,) = drawn(tmp_path / "out", f"--workdir={workdir}", "--num=1")
    assert line["text"] == "b" * LENGTH
    assert line["checkpoint"] == 2
    said = caplog.text + capfd.readouterr().err
    assert "Checkpoint 10 cannot be read" in said
    assert "passed over" in said
    assert contents(workdir) == before
    damage(workdir / "checkpoints" / "2")
    assert_refused([f"--workdir={workdir}"], "None of the checkpoints", "step 10")


def test_checkpoint_that_a_run_deletes_meanwhile_does_no_harm(tmp_path, monkeypatch):
    """Between the listing and the reading, step 2 gives way to step 10."""
    ema = {"a": jnp.ones(3)}
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, 2, 9)
    for step in (2, 10):
        checkpoints.save(step, {"ema": ema}, {})
    checkpoints.close()
    (folder / "10").rename(tmp_path / "10")
    listed = checkpoint._steps

    def list_and_go_on(folder):
        steps = listed(folder)
        if (tmp_path / "10").exists():
            (tmp_path / "10").rename(folder / "10")
            shutil.rmtree(folder / "2")
        return steps

    monkeypatch.setattr(checkpoint, "_steps", list_and_go_on)
    assert restore_weights(folder, jax.eval_shape(lambda: ema), dp(jax.devices()))[0] == 10


def test_interrupted_samples_are_written(run, tmp_path, monkeypatch):
    update = ProgressBar.update

    def update_and_stop(self, done, numbers):
        update(self, done, numbers)
        if done == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressBar, "update", update_and_stop)
    args = [f"--workdir={run}", "--num=9", "--batch_size=2"]
    assert len(drawn(tmp_path / "out", *args)) == 4


def assert_refused(args, *parts):
    with pytest.raises(UserError) as raised:
        call(*args)
    message = str(raised.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 500  # paths of tests are long
    for part in parts:
        assert part in message


FITTING = ", ".join(fitting_samplers(OBJECTIVES["radd_t_dce"], "absorbing", "none"))
BAD_FLAGS = {
    "top_p too large": (["--top_p=1.5"], "--top_p=1.5", "above 0 and at most 1"),
    "top_p of zero": (["--top_p=0"], "--top_p=0"),
    "top_p that is no number": (["--top_p=nan"], "--top_p=nan"),
    "negative temperature": (["--temperature=-1"], "--temperature=-1.0", "at least 0"),
    "infinite temperature": (["--temperature=inf"], "--temperature=inf"),
    "negative top_k": (["--top_k=-1"], "--top_k=-1", "from 0"),
    "no steps": (["--steps=0"], "--steps=0", "from 1"),
    "too many steps": ([f"--steps={2**31}"], f"--steps={2**31}", "from 1"),
    "no samples": (["--num=0"], "--num=0", "from 1"),
    "no batch": (["--batch_size=0"], "--batch_size=0", "from 1"),
    "negative seed": (["--seed=-1"], "--seed=-1", "from 0"),
    "short length": (["--length=1"], "config.data.length=1", "at least 2"),
    "unknown sampler": (["--sampler=foo"], "sampler='foo'", FITTING),
    "sampler of other networks": (["--sampler=autoregressive"], "'autoregressive'", FITTING),
    "option without value": (["--option=foo"], "--option=foo", "name=value"),
    "unknown option": (["--option=foo=3"], "config.sampler.foo is unknown"),
    "option of another sampler": (["--option=gamma=1"], "config.sampler.gamma", "'event_driven'"),
    "word for a number": (["--sampler=entropy", "--option=gamma=x"], "--option=gamma=x", "number"),
    "option out of range": (
        ["--sampler=entropy", "--option=gamma=-1"],
        "config.sampler.gamma=-1.0",
        "at least 0",
    ),
    "unknown word for an option": (
        ["--sampler=remdm", "--option=strategy=x"],
        "config.sampler.strategy='x'",
        "cap, rescale",
    ),
    "option with its own flag": (["--option=steps=3"], "--option=steps=3", "own flags"),
    "long prompt": ([f"--prefix={'x' * 9}", f"--suffix={'y' * 9}"], "takes 18 tokens", "the 16"),
    "full prompt": ([f"--prefix={'x' * 8}", f"--suffix={'y' * 8}"], "nothing to draw"),
    "prompt that is not text": (["--prefix=\udcff"], r"'\udcff'"),
    "template with prefix": ([f"--template={ROOT}/LICENSE", "--prefix=b"], "template", "a prefix"),
    "template with suffix": ([f"--template={ROOT}/LICENSE", "--suffix=b"], "template", "a suffix"),
    "no template": (["--template=/no/such"], "--template=/no/such", "No such file"),
    "template without blank": ([f"--template={ROOT}/LICENSE"], "no blank"),
    "folder for a file": ([f"--out={ROOT}"], f"--out={ROOT}", "is a folder"),
    "file for a folder": ([f"--out={ROOT}/LICENSE/x"], "LICENSE/x cannot be written"),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flag_ends_in_one_sentence(run, case):
    args, *parts = BAD_FLAGS[case]
    before = contents(run)
    assert_refused([f"--workdir={run}", *args], *parts)
    assert contents(run) == before


def test_folder_that_is_no_run_ends_in_one_sentence(tmp_path, prepared):
    assert_refused([], "--workdir is missing")
    assert_refused([f"--workdir={tmp_path}/nope"], "nope is not the folder of a run")
    assert_refused([f"--workdir={tmp_path}"], f"{tmp_path} is not the folder of a run")
    (tmp_path / "file").write_text("x")
    assert_refused([f"--workdir={tmp_path}/file"], "file is not the folder of a run")
    for content in ("{not json", "[]", "{}", '{"config": 3}', '{"config": {}, "data": {}}'):
        (tmp_path / "config.json").write_text(content)
        assert_refused([f"--workdir={tmp_path}"], "config.json is not the record of a run")
    write_record(tmp_path / "new", config_of(prepared), prepared)
    assert_refused([f"--workdir={tmp_path}/new"], "new/checkpoints has no checkpoint yet")


def test_prepared_set_that_is_gone_or_another_ends_in_one_sentence(tmp_path, prepared):
    moved = dataclasses.replace(prepared, folder=tmp_path / "set")
    write_record(tmp_path / "run", config_of(prepared), moved)
    remedy = "run `python -m ddm_jax.prepare "
    assert_refused([f"--workdir={tmp_path}/run"], f"{tmp_path}/set, which is gone", remedy)
    shutil.copytree(prepared.folder, tmp_path / "set")
    assert_refused([f"--workdir={tmp_path}/run"], "has no checkpoint yet")
    dataclasses.replace(prepared.tokenizer, eos_id=0).save(tmp_path / "set")
    assert_refused([f"--workdir={tmp_path}/run"], f"tokenizer in {tmp_path}/set is not the one")


def test_network_that_knows_the_time_is_not_sampled_by_cached(tmp_path, prepared):
    write_record(tmp_path, config_of(prepared, objective__name="sedd_absorb"), prepared)
    assert_refused(
        [f"--workdir={tmp_path}", "--sampler=cached"],
        "config.sampler.name='cached'",
        "config.objective.name='sedd_absorb'",
        "config.model.time='adaln'",
    )


@pytest.mark.parametrize(
    ("wanted", "text", "value"),
    [(int, "12", 12), (float, "1e-3", 1e-3), (str, "a=b", "a=b"), (bool, "False", False)],
)
def test_option_has_the_type_of_its_field(monkeypatch, wanted, text, value):
    monkeypatch.setattr(run_flags, "field_type", {"sampler.mine": wanted}.__getitem__)
    assert run_flags._parse_option(f"mine={text}") == ("mine", value)
    if wanted is not str:
        with pytest.raises(UserError, match=r"--option=mine=x has the wrong type: give .*\."):
            run_flags._parse_option("mine=x")


def test_other_sampler_leaves_the_options_of_the_run_behind(prepared):
    config = config_of(prepared, sampler__name="ordered", sampler__order="left", sampler__steps=9)
    assert trained.with_sampler(config) == config
    assert trained.with_sampler(config, "ordered", 4).sampler.order == "left"
    again = trained.with_sampler(config, length=8, options={"order": "right"})
    assert (again.sampler.order, again.sampler.steps, again.data.length) == ("right", 9, 8)
    other = trained.with_sampler(config, "entropy", options={"gamma": 0.5})
    assert (other.sampler.order, other.sampler.gamma, other.sampler.steps) == (None, 0.5, 9)


def command(*args):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-m", "ddm_jax.sample", *args],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_runs_by_itself(run, tmp_path):
    done = command(f"--workdir={run}", f"--out={tmp_path}/x", "--prefix=the ", "--num=2", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["out"], result["num"], result["checkpoint"]) == (f"{tmp_path}/x", 2, 10)
    lines = (tmp_path / "x").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["the aaaaaaaaaaaa"] * 2


def test_mistake_ends_the_program_with_one_line(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sample", f"--workdir={run}", "--top_p=3"])
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as ended:
        cli.run(sample.main, sample.define_flags)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: --top_p=3.0 is out of range: give a number above 0 and at most 1.\n"
