"""`python -m ddm_jax.sample` on runs whose weights are known: each checkpoint says one letter.

Most command lines run in this process, one in a fork; test_readme.py samples what was trained.
"""

import json
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from ddm_jax.generation import generate
from ddm_jax.runs.files import write_new
from ddm_jax.runs.progress import ProgressBar
from ddm_jax.samplers.signature import Stats
from tests import commands
from tests.letters import LENGTH, call, contents, drawn

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


def test_samples_are_printed_and_written_as_promised(letters_run, tmp_path, capsys):
    before = contents(letters_run)
    args = ["--num=3", "--batch_size=2", "--steps=5", "--prefix=So: ", "--suffix=!", "--json"]
    samples = drawn(tmp_path / "made" / "x.jsonl", f"--workdir={letters_run}", *args)
    text = "So: " + "a" * (LENGTH - 5) + "!"
    shared = {
        "workdir": str(letters_run),
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
    assert contents(letters_run) == before


@pytest.mark.slow
def test_samples_depend_on_seed_and_place_alone(letters_run, tmp_path):
    """Neither on how many are drawn, nor on the devices that share a batch."""
    args = [f"--workdir={letters_run}", RANDOM, "--steps=2"]
    one, many, other = (
        [line["text"] for line in drawn(tmp_path / f"{num}{seed}", *args, *more)]
        for num, seed in ((1, 7), (5, 7), (2, 8))
        for more in [[f"--num={num}", "--batch_size=2", f"--seed={seed}"]]
    )
    assert len(many) == len(set(many)) == 5
    assert one == many[:1]
    assert not set(other) & set(many)


@pytest.mark.slow
def test_template_is_kept_and_greedy_draws_are_the_best(letters_run, tmp_path):
    template = tmp_path / "template.txt"
    template.write_text("{{2}}x\n{{3}}y{{}}end\n")
    args = [f"--template={template}", "--temperature=0", "--num=1", "--sampler=ordered"]
    args += ["--option=order=right"]
    (line,) = drawn(tmp_path / "out", f"--workdir={letters_run}", *args)
    assert line["text"] == "aax\naaay" + "a" * 5 + "end"
    assert (line["sampler"], line["options"]) == ("ordered", {"order": "right"})
    assert line["prompt"] == {"template": "{{2}}x\n{{3}}y{{}}end"}


@pytest.mark.slow
def test_files_that_are_there_are_left_alone(letters_run, tmp_path):
    workdir = shutil.copytree(letters_run, tmp_path / "run")
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


def test_interrupted_samples_are_written(letters_run, tmp_path, monkeypatch):
    update = ProgressBar.update

    def update_and_stop(self, done, numbers):
        update(self, done, numbers)
        if done == 4:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ProgressBar, "update", update_and_stop)
    args = [f"--workdir={letters_run}", "--num=9", "--batch_size=2"]
    assert call(f"--out={tmp_path / 'out'}", *args) == 130
    assert len((tmp_path / "out").read_text().splitlines()) == 4


@pytest.mark.slow
def test_command_runs_by_itself(letters_run, tmp_path):
    flags = [f"--out={tmp_path}/x", "--prefix=the ", "--num=2", "--json"]
    done = commands.run("sample", f"--workdir={letters_run}", *flags, code=0)
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["out"], result["num"], result["checkpoint"]) == (f"{tmp_path}/x", 2, 10)
    lines = (tmp_path / "x").read_text().splitlines()
    assert [json.loads(line)["text"] for line in lines] == ["the aaaaaaaaaaaa"] * 2
