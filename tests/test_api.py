"""`import ddm_jax`: train, open_run, generate and likelihood from Python, equal to the commands."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import ddm_jax
from ddm_jax import evaluate
from ddm_jax.generation.translation import translate_sources
from tests import letters
from tests.trained import LENGTH, STEPS


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory):
    """Of a copy: evaluations are written into it."""
    folder = shutil.copytree(trained_run, tmp_path_factory.mktemp("copy") / "run")
    return ddm_jax.open_run(str(folder))


@pytest.mark.slow
def test_import_is_light_and_names_are_listed():
    code = (
        "import sys, ddm_jax; assert 'jax' not in sys.modules; "
        "assert set(ddm_jax.__all__) <= set(dir(ddm_jax)); "
        "print(ddm_jax.__version__); ddm_jax.generate; assert 'jax' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{ddm_jax.__version__}\n"
    with pytest.raises(AttributeError, match="'ddm_jax' has no attribute 'nope'"):
        ddm_jax.nope  # noqa: B018
    for name in ddm_jax.__all__:
        assert getattr(ddm_jax, name)


@pytest.mark.slow
def test_run_says_what_it_is(trained_run):
    run = ddm_jax.open_run(str(trained_run))
    assert (run.step, run.weights, run.workdir) == (STEPS, "ema", trained_run)
    assert run.config.train.steps == STEPS
    assert run.tokenizer.name == "bytes"
    text = repr(run)
    assert len(text) < 300  # it does not print the weights
    assert f"step={STEPS}" in text
    assert "objective='radd_t_dce'" in text


def test_metrics_are_columns(run):
    metrics = run.metrics
    lines = [json.loads(x) for x in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    steps, loss = metrics.curve("loss")
    assert steps.tolist() == [10, 20, 30, 40]
    assert loss.tolist() == [line["loss"] for line in lines if "loss" in line]
    assert len(metrics) == len(metrics["nll"]) == len(lines)
    assert np.isnan(metrics["nll"]).sum() == 4
    assert metrics.curve("nll")[0].tolist() == [STEPS]
    assert "bits_per_byte" in str(metrics)
    assert "<th>loss</th>" in metrics._repr_html_()
    with pytest.raises(ddm_jax.UserError, match=r"no field 'los': choose one of step, .*loss"):
        metrics["los"]


def test_run_that_has_logged_nothing_has_empty_metrics(trained_run, tmp_path):
    (tmp_path / "config.json").write_text((trained_run / "config.json").read_text())
    (tmp_path / "checkpoints").symlink_to(trained_run / "checkpoints")
    metrics = ddm_jax.open_run(tmp_path).metrics
    assert len(metrics) == 0
    assert str(metrics) == "\n0 lines, fields: none"


@pytest.mark.slow
def test_generate_draws_what_the_command_draws(run, tmp_path):
    # without any of these the draws are others
    options = {"num": 3, "seed": 4, "batch_size": 2, "temperature": 0.7, "top_k": 4, "top_p": 0.6}
    for name, more in {
        "ends": {"prefix": "on ", "suffix": "!", "steps": 2},
        "template": {"template": "{{2}}the{{}}", "sampler": "confidence", "length": 12},
    }.items():
        (tmp_path / "t.txt").write_text(more.get("template", ""))
        as_flags = options | more | ({"template": tmp_path / "t.txt"} if name == "template" else {})
        lines = letters.drawn(
            tmp_path / name,
            f"--workdir={run.workdir}",
            *(f"--{flag}={value}" for flag, value in as_flags.items()),
        )
        made = ddm_jax.generate(run, **options, **more)
        assert made.texts == [line["text"] for line in lines]
        assert made.tokens.tolist() == [line["tokens"] for line in lines]
        assert made.tokens.dtype == np.int32
        assert made.nfe.tolist() == [line["nfe"] for line in lines]


@pytest.mark.slow
def test_generated_text_is_shown_as_text(run):
    made = ddm_jax.generate(run, 1, prefix="<b>\n", steps=1)
    assert repr(made) == str(made) == f"--- sample 1: 1 network evaluations\n{made.texts[0]}"
    assert "&lt;b&gt;\n" in made._repr_html_()


@pytest.mark.slow
def test_options_of_the_sampler(run):
    options = {"order": "right"}
    made = ddm_jax.generate(run, 2, sampler="ordered", options=options, temperature=0)
    assert made.nfe.tolist() == [LENGTH] * 2
    assert made.texts[0] == made.texts[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num": 0}, "num=0 is out of range"),
        ({"steps": 0}, "steps=0 is out of range"),
        ({"batch_size": 0}, "batch_size=0 is out of range"),
        ({"temperature": -1}, "temperature=-1 is out of range"),
        ({"temperature": float("inf")}, "temperature=inf is out of range"),
        ({"top_p": 0}, "top_p=0 is out of range"),
        ({"length": 1}, "config.data.length=1 is out of range"),
        ({"sampler": "nope"}, "sampler='nope' is unknown: this run can be sampled by event_driven"),
        ({"sampler": "autoregressive"}, "config.sampler.name='autoregressive' does not fit"),
        ({"options": {"nope": 1}}, "config.sampler.nope is unknown"),
        ({"options": {"order": 3}}, "config.sampler.order=3 has the wrong type"),
        ({"prefix": "x" * 99}, "The prompt takes 99 tokens"),
        ({"prefix": "x", "template": "{{}}"}, "A template does not go with a prefix"),
        ({"template": "x"}, "The template has no blank"),
    ],
)
def test_generate_says_in_one_sentence_what_is_wrong(run, arguments, said):
    with pytest.raises(ddm_jax.UserError) as raised:
        ddm_jax.generate(run, **arguments)
    message = str(raised.value)
    assert said in message
    assert message.endswith(".")
    assert "\n" not in message


def test_run_without_sources_does_not_translate(run):
    with pytest.raises(ddm_jax.UserError, match=r"has no sources .*use `python -m ddm_jax.sample`"):
        translate_sources(run, ["a"])


@pytest.mark.slow
def test_likelihood_is_that_of_the_command(run, capsys):
    with flagsaver.flagsaver():
        evaluate.define_flags()
        flags.FLAGS(["evaluate", f"--workdir={run.workdir}", "--draws=2", "--num=6", "--json"])
        evaluate.main([])
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    found = ddm_jax.likelihood(run, draws=2, num=6)
    for name in ("nll", "stderr", "bits_per_byte", "tokens", "sequences", "estimates"):
        assert getattr(found, name) == report[name]


@pytest.mark.parametrize(
    ("config", "overrides", "said"),
    [
        ("no_such", None, "config='no_such' is not a recipe"),
        ("radd_tiny:loss=x", None, "config argument 'loss=x' is unknown"),
        ("radd_tiny", {"train.stepz": 1}, "config.train.stepz is unknown"),
        ("radd_tiny", {"train.steps": "x"}, "config.train.steps='x' has the wrong type"),
        ("radd_tiny", {"train.steps": 0}, "config.train.steps=0 is out of range"),
        ("radd_tiny", {"train": 0}, "config.train is a section"),
        ("radd_tiny", {"model.time": "adaln"}, "config.model.time='adaln' does not fit"),
    ],
)
def test_train_says_in_one_sentence_what_is_wrong(tmp_path, config, overrides, said):
    with pytest.raises(ddm_jax.UserError) as raised:
        ddm_jax.train(config, tmp_path / "run", overrides=overrides)
    assert said in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_open_run_says_in_one_sentence_what_is_wrong(trained_run, tmp_path):
    with pytest.raises(ddm_jax.UserError, match=r"is not the folder of a run"):
        ddm_jax.open_run(tmp_path)
    with pytest.raises(ddm_jax.UserError, match=r"weights='best' is unknown: give one of ema"):
        ddm_jax.open_run(trained_run, "best")
