"""From pairs in a file to scores, as a user does it: train, resume, translate, evaluate.

The pairs and the run: tests/pairs_run.py.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

import ddm_jax
from ddm_jax.data.loading.loader import train_iterator
from ddm_jax.data.open import open_or_prepare
from ddm_jax.errors import UserError
from ddm_jax.evaluation.pairs import PairsRequest, measure_pairs
from ddm_jax.evaluation.text_scores import bleu
from ddm_jax.experiment import build, make_parts
from ddm_jax.generation.request import SamplingRequest
from ddm_jax.generation.translation import open_translator, translate, translate_sources
from ddm_jax.parallel.layout_hooks import hooks_of
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.checkpoint import Checkpoints
from ddm_jax.runs.files import read_metrics
from ddm_jax.runs.run import open_run
from ddm_jax.settle import settle
from ddm_jax.training import loop
from ddm_jax.training.programs import make_train_program
from tests import commands
from tests.pairs_run import make_config, pairs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def files(pairs_run):
    return pairs_run.parent


@pytest.fixture(scope="module")
def run(pairs_run, tmp_path_factory):
    """A copy: translations and evaluations are written into it."""
    return shutil.copytree(pairs_run, tmp_path_factory.mktemp("copy") / "run")


def numbers(workdir):
    records = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in r.items() if k not in ("tokens_per_s", "step_s")} for r in records]


def checkpoint_params(workdir, step):
    manager = Checkpoints(epath.Path(workdir / "checkpoints"), 3, 10**6)
    params = manager._manager.restore(step)["state"]["params"]
    manager.close()
    return params


def test_training_shows_the_length_loss_and_translations(pairs_run):
    trained = [r for r in numbers(pairs_run) if "loss" in r]
    assert len(trained) == 6
    assert all(r["length_loss"] > 0 for r in trained)
    scores = numbers(pairs_run)[-1]
    held_out = pairs(60, 1)[:16]
    sources, references = zip(*held_out, strict=True)
    assert scores["bleu_copy"] == bleu(sources, references)[0]
    written = (pairs_run / "samples" / "00000006.txt").read_text()
    assert written.count("reference: ") == 2
    assert f"source:      {sources[0]}\n" in written
    assert f"reference:   {references[1]}\n" in written


def test_stopped_training_goes_on_with_the_same_numbers(pairs_run, files, tmp_path, one_device):
    """From what a run leaves that is stopped after step 5: its newest checkpoint is of step 4."""
    shutil.copytree(pairs_run, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "checkpoints" / "6")
    lines = (pairs_run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:5]))
    assert [r["step"] for r in numbers(tmp_path)] == [1, 2, 3, 4, 5]
    assert loop.train_experiment(build(make_config(files)), tmp_path).finished
    assert numbers(tmp_path) == numbers(pairs_run)


def test_devices_and_parts_of_a_batch_do_not_change_a_step(pairs_run, files):
    """Two devices in place of the run's one, four parts in place of one; dropout included."""
    config = settle(make_config(files, train__microbatches=4))
    data = open_or_prepare(config.data)
    layout = dp(jax.devices()[:2])
    process, objective, network = make_parts(config, data.tokenizer.vocab_size, hooks_of(layout))
    program = make_train_program(config, process, objective, network, layout)
    shardings = layout.state_shardings(program.state)
    state = jax.jit(program.init, out_shardings=shardings)(jax.random.key(config.seed))
    step = program.jitted_step()
    batches = train_iterator(data, batch_size=8, seed=config.seed)
    for theirs in numbers(pairs_run)[:2]:
        state, metrics = step(state, layout.put_train_batch(next(batches)))
        for name in theirs.keys() & metrics.keys():
            np.testing.assert_allclose(metrics[name], theirs[name], rtol=2e-4, err_msg=name)
    trained = checkpoint_params(pairs_run, 2)
    assert jax.tree.structure(trained) == jax.tree.structure(state.params)
    for ours, theirs in zip(*map(jax.tree.leaves, (state.params, trained)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=1e-6)


def test_weights_of_several_checkpoints_are_averaged(pairs_run):
    layout = dp(jax.devices())
    runs = {w: open_run(pairs_run, w, layout) for w in ("ema", "last", "average:1", "average:3")}
    assert {r.step for r in runs.values()} == {6}
    for name in ("last", "average:1"):
        jax.tree.map(np.testing.assert_array_equal, runs[name].params, runs["last"].params)
    read = [checkpoint_params(pairs_run, step)["length"]["kernel"] for step in (2, 4, 6)]
    mean = runs["average:3"].params["length"]["kernel"]
    np.testing.assert_allclose(mean, np.mean(read, axis=0), rtol=1e-6)
    assert np.abs(np.asarray(runs["ema"].params["length"]["kernel"]) - read[-1]).max() > 0


def test_command_lines_translate_and_score(run):
    folder = f"--workdir={run}"
    done = commands.run("translate", folder, "--input=-", "--json", stdin="ba de\n\nko\n", code=0)
    *lines, last = done.stdout.splitlines()
    assert len(lines) == 3
    assert lines[1] == ""
    assert json.loads(last)["num"] == 3

    flags = ["--num=20", "--option=lengths=2", "--json"]
    out = commands.run("evaluate", folder, *flags, code=0).stdout
    report = json.loads(out.splitlines()[-1])
    assert (report["pairs"], report["left_out"], report["nfe"]) == (20, 0, 4)
    made = [json.loads(line) for line in Path(report["out"]).with_suffix(".jsonl").open()]
    assert [(m["source"], m["reference"]) for m in made] == pairs(60, 2)[:20]
    texts, references = ([m[name] for m in made] for name in ("translation", "reference"))
    assert (report["bleu"], report["bleu_signature"]) == bleu(texts, references)
    assert report["bleu_copy"] == bleu([m["source"] for m in made], references)[0]
    assert all(len(m["candidates"]) == 2 for m in made)
    number, about = out.splitlines()[-3:-1]
    assert number.startswith(f"BLEU {report['bleu']:.2f}, ")
    assert about.startswith("  for 20 pairs of test of ")

    refused = commands.run("translate", folder, "--text=" + "ba " * 20, code=2)
    assert "Line 1 of --text has" in refused.stderr
    refused = commands.run("sample", folder, code=2)
    assert "use `python -m ddm_jax.translate`" in refused.stderr


def test_pairs_are_measured_from_python(run):
    """Without flags; what the run makes of the sources is scored as the command does it."""
    request = PairsRequest(
        num=5, split="validation", sampling=SamplingRequest(options={"lengths": 2}, batch_size=8)
    )
    report = measure_pairs(run, request)
    assert (report["pairs"], report["sampler"]["lengths"], report["batch_size"]) == (5, 2, 8)
    assert report["data"].startswith("validation of pairs:")
    lines = Path(report["out"]).with_suffix(".jsonl").read_text().splitlines()
    made = [json.loads(line) for line in lines]
    texts, references = ([m[name] for m in made] for name in ("translation", "reference"))
    assert (report["bleu"], report["bleu_signature"]) == bleu(texts, references)
    with pytest.raises(UserError, match=r"nowhere\.tsv"):
        measure_pairs(run, PairsRequest(source="pairs:nowhere.tsv"))


def test_python_translates_what_the_command_translates(run):
    opened, sources = ddm_jax.open_run(run), ["ba de gi", "", "ko"]
    request = SamplingRequest(options={"lengths": 2}, seed=3)
    made = translate_sources(opened, sources, request)
    other, translator = open_translator(run, request)
    expected = translate(translator, other.params, sources, request.seed)
    assert (made.texts, made.candidates, made.nfe) == (
        (expected.texts, expected.candidates, expected.nfe)
    )
    assert [len(group) for group in made.candidates] == [2, 1, 2]
    with pytest.raises(ddm_jax.UserError, match=r"in Python translate_sources"):
        ddm_jax.generate(opened)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("prefix", {"objective__name": "radd_t_dce", "sampler__name": "event_driven"}),
        ("prefix", {"objective__name": "mdlm", "model__time": "adaln", "sampler__name": "auto"}),
        ("encoder_decoder", {"objective__name": "ar", "sampler__name": "auto"}),
        (
            "encoder_decoder",
            {"objective__name": "rdm_multinomial", "data__eos": "predicted", "process__steps": 5},
        ),
    ],
    ids=lambda x: x if isinstance(x, str) else x["objective__name"],
)
def test_other_objectives_learn_pairs_too(files, tmp_path, kind, changes, one_device):
    """Two steps and a validation: samplers and bounds find all that they need in the memory."""
    changes = {"train__steps": 2, "eval__every": 2, "data__buckets": 1} | changes
    changes = {"process__steps": 5 if "process__name" in changes else None} | changes
    outcome = loop.train_experiment(build(make_config(files, kind, **changes)), tmp_path)
    assert np.isfinite(outcome.validation.bound.nll)
    assert len(outcome.validation.samples) == 2
