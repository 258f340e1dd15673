"""From a trained run to a likelihood with its errors: the command, its report, and resuming."""

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from ddm_jax.data.loading.loader import eval_batches
from ddm_jax.data.open import open_or_prepare
from ddm_jax.errors import UserError
from ddm_jax.evaluation.likelihood import estimators
from ddm_jax.evaluation.likelihood.measure import (
    LikelihoodRequest,
    likelihood,
    measure_likelihood,
)
from ddm_jax.evaluation.likelihood.monte_carlo import estimate, make_bound
from ddm_jax.evaluation.likelihood.partial_results import PartialResults
from ddm_jax.evaluation.reports import weights_hash
from ddm_jax.evaluation.samples.measure import SamplesRequest, measure_samples
from ddm_jax.experiment import with_options
from ddm_jax.generation.request import SamplingRequest
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.interrupt import exit_code
from ddm_jax.runs.record import read_record
from ddm_jax.runs.run import open_run
from tests import commands
from tests.commands import assert_one_sentence
from tests.trained import LENGTH, STEPS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(trained_run, tmp_path_factory):
    """A copy: evaluations are written into it."""
    return shutil.copytree(trained_run, tmp_path_factory.mktemp("copy") / "run")


NUMBERS = ("nll", "stderr", "mc_stderr", "text_stderr", "sequences", "tokens", "bytes")


def test_estimators_agree_on_a_trained_run(run, one_device):
    """Each with each, within 5 errors of the draws (wrong once in 10^6) and 0.3 % for t < 1e-3.

    Except sedd_absorb, whose scores are not normalised: it is a bound, and a looser one.
    """
    request = LikelihoodRequest(num=24, draws=32)
    found = {
        name: measure_likelihood(run, dataclasses.replace(request, estimator=name))
        for name in estimators.fitting(read_record(run)[0])
    }
    pseudo, loose = found.pop("mlm_pseudo"), found.pop("sedd_absorb")
    assert set(found) == {
        *("radd_t_dse", "radd_t_dce", "radd_lambda_dce", "radd_ao", "mdlm", "md4")
    }
    for a in found.values():
        assert a["mc_stderr"] < 0.05 * a["nll"]
        for b in found.values():
            error = math.hypot(a["mc_stderr"], b["mc_stderr"])
            assert abs(a["nll"] - b["nll"]) < 5 * error + 3e-3 * a["nll"]
    assert loose["nll"] > found["radd_ao"]["nll"] - 5 * loose["mc_stderr"]
    assert pseudo["estimates"].startswith("a pseudo")
    assert found["radd_ao"]["nll"] < math.log(257) - 0.5  # it has learnt something


def test_own_split_is_the_bound_of_validation_with_other_draws(run):
    """On the whole split; within 5 joint errors of the draws, whose error is the same in both."""
    config = read_record(run)[0]
    report = measure_likelihood(run, LikelihoodRequest(split="validation", draws=16))
    data = open_or_prepare(config.data)
    opened = open_run(run, layout=dp(jax.devices()))
    loss = with_options(OBJECTIVES["radd_ao"], config).loss
    bound = jax.jit(make_bound(opened.network, loss, opened.process, 16))
    batches = eval_batches(data, "validation", batch_size=16)
    per_token = data.bytes_per_token("validation")
    held_out = estimate(bound, opened.params, batches, 16, per_token, "")
    assert report["sequences"] == held_out.sequences == len(data.records("validation"))
    assert report["tokens"] == held_out.tokens
    assert abs(report["nll"] - held_out.nll) < 5 * math.sqrt(2) * report["mc_stderr"]
    bits = report["nll"] / math.log(2)
    assert report["bits_per_token"] == pytest.approx(bits)
    assert report["bits_per_byte"] == pytest.approx(bits / per_token)
    # "é" is two bytes: there are fewer characters
    assert report["bits_per_char"] > report["bits_per_byte"]
    assert report["ppl"] == pytest.approx(math.exp(report["nll"]))


def test_report_says_how_the_number_was_made(run):
    tokenizer = read_record(run)[1]
    report = measure_likelihood(
        run, LikelihoodRequest(num=5, draws=4, estimator="mdlm", time_steps=10, seed=3)
    )
    said = {
        "checkpoint": STEPS,
        "weights": "ema",
        "estimator": "mdlm",
        "estimates": "an upper bound",
        "draws": 4,
        "groups": 2,
        "levels": "t uniform on the grid of 10 steps",
        "time_grid": "stratified within each group",
        "split": "test",
        "protocol": "the run's own",
        "eos": "after every document",
        "detokeniser": "none",
        "tokenizer": "bytes",
        "tokenizer_sha256": tokenizer.fingerprint,
        "compute_dtype": "float32",
        "seed": 3,
        "sequences": 5,
        "tokens": 5 * LENGTH,
        "length": LENGTH,
    }
    assert {name: report[name] for name in said} == said
    assert report["wrap"].endswith("the tail that fills no block is dropped")
    assert report["comparable"].startswith("no: ")
    assert report["options"]["steps"] == 10
    assert report["versions"]["jax"] == jax.__version__
    written = json.loads(Path(report["out"]).read_text())
    assert written == {name: x for name, x in report.items() if name != "out"}
    assert Path(report["out"]).parent == run / "evaluation"
    params = open_run(run, layout=dp(jax.devices()[:1])).params
    assert report["weights_sha256"] == weights_hash(params)
    params["embed"]["embedding"] = params["embed"]["embedding"].at[0, 0].add(1)
    assert report["weights_sha256"] != weights_hash(params)


def test_interrupted_evaluation_resumes_with_the_same_numbers(run, tmp_path, monkeypatch, capsys):
    """Stopped after two batches, its file torn; then other batches: nothing is done twice."""
    request = LikelihoodRequest(num=36, draws=2, batch_size=8, seed=11)
    append = PartialResults.append

    def stop_after_two(self, nats, tokens):
        append(self, nats, tokens)
        if len(self) == 16:
            os.kill(os.getpid(), 2)  # Ctrl-C

    monkeypatch.setattr(PartialResults, "append", stop_after_two)
    assert measure_likelihood(run, request) is None
    assert "Stopped after 16 of 36 sequences" in capsys.readouterr().out
    assert exit_code() == 130
    (file,) = (
        path
        for path in (run / "evaluation").glob("*.batches.jsonl")
        if '"seed": 11' in path.read_text()
    )
    with file.open("a") as torn:
        torn.write('{"first": 16, "nats": [[1.0')
    counted = []

    def count(self, nats, tokens):
        counted.append(len(tokens))
        append(self, nats, tokens)

    monkeypatch.setattr(PartialResults, "append", count)
    report = measure_likelihood(run, dataclasses.replace(request, batch_size=16))
    assert counted == [16, 4]
    assert report["sequences_from_before"] == 16
    again = measure_likelihood(run, request)
    assert counted == [16, 4]  # all was there
    file.unlink()
    fresh = measure_likelihood(run, request)
    for other in (again, fresh):
        for name in NUMBERS:
            assert other[name] == pytest.approx(report[name], rel=1e-6), name
    assert len({report["out"], again["out"], fresh["out"]}) == 3


def test_partial_results_of_other_numbers_are_discarded(tmp_path):
    file = tmp_path / "a.jsonl"
    PartialResults(file, {"seed": 1}, 2).append(np.ones((3, 2), np.float32), np.ones(3, int))
    kept = PartialResults(file, {"seed": 1}, 2)
    np.testing.assert_array_equal(kept.nats, np.ones((3, 2)))
    assert len(PartialResults(file, {"seed": 2}, 2)) == 0


def test_each_identity_has_partial_results_of_its_own(run):
    """Seeds, draws and weights do not share partial results; batch sizes do."""
    request = LikelihoodRequest(num=8, draws=2, seed=21)
    first = measure_likelihood(run, request)
    changes = ({"seed": 22}, {"draws": 4}, {"weights": "last"}, {"num": 7})
    for change in changes:
        other = measure_likelihood(run, dataclasses.replace(request, **change))
        assert other["sequences_from_before"] == 0, change
        assert other["nll"] != first["nll"]
    assert (
        measure_likelihood(run, dataclasses.replace(request, batch_size=4))["sequences_from_before"]
        == 8
    )


def test_protocol_works_with_another_tokenizer_and_says_so(run, tmp_path):
    (tmp_path / "ptb.txt").write_text("it was N not the one 's\n" * 40)
    request = LikelihoodRequest(dataset=f"ptb={tmp_path}/ptb.txt", protocol="mdlm", draws=2)
    report = measure_likelihood(run, request)
    assert (report["protocol"], report["dataset"], report["split"]) == ("mdlm", "ptb", "validation")
    assert report["comparable"] == "no: the run's tokenizer is bytes, the papers' gpt2"
    assert report["detokeniser"] == "ptb"
    assert "first (as BOS) and last in every block" in report["eos"]
    assert report["documents"] == 40
    # 22 bytes and an EOS a line, 30 of them a block
    assert report["sequences"] == 40 * 23 // 30
    assert report["tokens"] == report["sequences"] * 32
    assert report["bytes"] == report["characters"] == pytest.approx(900 * 22 / 23, abs=12)


def test_one_block_has_no_error_over_sequences(run, tmp_path):
    (tmp_path / "a.txt").write_text("so the one that we saw was not there")
    report = measure_likelihood(run, LikelihoodRequest(dataset=f"{tmp_path}/a.txt", draws=4))
    assert report["sequences"] == 1
    assert report["stderr"] is None
    assert report["mc_stderr"] > 0


def test_python_and_the_command_have_the_same_number(run, tmp_path):
    """Of the run's own split, of a file, and of the texts in it."""
    opened = open_run(run, layout=dp(jax.devices()[:1]))
    texts = ["so the one that we saw was not there", "", "é that was told", "so we saw"] * 4
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    dataset = f"{tmp_path}/texts.jsonl"
    options = {"draws": 4, "num": 8, "batch_size": 4, "seed": 3}
    for given, split, changes in (
        (None, "validation", {}),
        (Path(dataset), None, {"dataset": dataset}),
        (texts, None, {"dataset": dataset}),
    ):
        found = likelihood(opened, given, split=split, **options)
        request = LikelihoodRequest(split=split, **changes, **options)
        report = measure_likelihood(run, request)
        for name in ("nll", "stderr", "ppl", "bits_per_byte", "tokens", "sequences", "draws"):
            assert getattr(found, name) == report[name], (given, name)
        assert found.estimates == report["estimates"] == "an upper bound"
    assert str(found) == (
        f"{found.nll:.4f} +- {found.stderr:.4f} nats per token (an upper bound), perplexity "
        f"{found.ppl:.2f}, {found.bits_per_byte:.3f} bits per byte; 256 tokens in 8 sequences, 4 "
        "draws each"
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num": 0}, "num=0 is out of range"),
        ({"draws": 0}, "draws=0 is neither 1 nor a positive even number"),
        ({"texts_or_dataset": []}, "The list of texts has 0 tokens in 0 documents"),
        ({"texts_or_dataset": ["a"], "protocol": "gpt"}, "--protocol=gpt is unknown: use one of"),
        ({"texts_or_dataset": "ptb"}, "add --protocol=sedd or mdlm"),
        ({"texts_or_dataset": ["a"], "split": "test"}, "split='test' does not apply to a list"),
    ],
)
def test_errors_of_likelihood_name_what_is_wrong(run, given, said):
    with pytest.raises(UserError) as error:
        likelihood(open_run(run, layout=dp(jax.devices()[:1])), **given)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (
            {"estimator": "ar"},
            "--estimator=ar does not fit this run (config.objective.name='radd_t",
        ),
        ({"estimator": "d3pm"}, "use one of radd_t_dse, radd_t_dce, radd_lambda_dce, radd_ao, "),
        ({"estimator": "elbo"}, "--estimator=elbo is unknown"),
        ({"draws": 5}, "--draws=5 is neither 1 nor a positive even number"),
        ({"time_steps": 10}, "does not apply to --estimator=radd_ao: use --estimator=mdlm or "),
        ({"protocol": "sedd"}, "--protocol=sedd needs a text: give --dataset="),
        ({"dataset": "ptb", "protocol": "sedd"}, "There is no "),
    ],
)
def test_errors_name_what_is_wrong(run, request_, said):
    with pytest.raises(UserError) as error:
        measure_likelihood(run, LikelihoodRequest(data_root="/nowhere", **request_))
    assert said in str(error.value)


def test_samples_are_measured_from_python(run):
    """Without flags; the same samples again are those that were saved."""
    request = SamplesRequest(
        samples=3, infill=4, split="validation", sampling=SamplingRequest(steps=2, batch_size=2)
    )
    report = measure_samples(run, request)
    assert report["drawn"]["samples"]["texts"] == report["drawn"]["reference"]["texts"] == 3
    assert (report["sampler"]["steps"], report["batch_size"], report["weights"]) == (2, 2, "ema")
    assert report["infilling"]["blocks"] == 4
    written = json.loads(Path(report["out"]).read_text())
    assert written == {name: x for name, x in report.items() if name != "out"}
    again = measure_samples(run, dataclasses.replace(request, infill=0))
    assert again["drawn"] == report["drawn"]
    with pytest.raises(UserError, match="--mauve compares samples with held-out text"):
        measure_samples(run, SamplesRequest(infill=2, mauve=True))


def test_command_prints_the_number_last_progress_and_json(run):
    folder = f"--workdir={run}"
    sizes = ("--split=validation", "--num=4", "--draws=2")
    _, out, said = commands.run("evaluate", folder, *sizes, "--json", code=0)
    report = json.loads(out.splitlines()[-1])
    assert report["split"] == "validation"
    number, size, about = out.splitlines()[-4:-1]
    assert number.startswith(f"{report['nll']:.4f} +- {report['stderr']:.4f} nats per token (")
    assert " in 4 sequences, 2 draws each: validation of " in size
    assert about.startswith(f"  ema weights of step {report['checkpoint']}; the error is ")
    assert "4/4 sequences" in said
    assert "left" in said


def test_flags_of_pairs_are_refused_for_text(run):
    ended = commands.run("evaluate", f"--workdir={run}", "--source=pairs:reverse")
    assert_one_sentence(ended, "--source does not apply: the run is a language model")


def test_command_scores_samples_and_infilling(run):
    sizes = ("--samples=3", "--infill=5", "--batch_size=4", "--steps=2", "--split=validation")
    _, out, said = commands.run("evaluate", f"--workdir={run}", *sizes, "--json", code=0)
    report = json.loads(out.splitlines()[-1])
    drawn, infilling = report["drawn"], report["infilling"]
    assert drawn["samples"]["texts"] == drawn["reference"]["texts"] == 3
    assert (drawn["steps"], infilling["blocks"]) == (2, 5)
    assert 0 <= infilling["token_accuracy"] <= 1
    assert "entropy, nats" in out
    assert "token_accuracy" in out
    assert "3/3 sequences" in said
    kept = json.loads(Path(report["out"]).read_text())
    assert kept == {name: x for name, x in report.items() if name != "out"}
    assert report["git_revision"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--samples=2", "--draws=4"), "--draws does not apply: --samples and --infill draw text"),
        (("--steps=4",), "--steps does not apply: a likelihood draws no text without --samples=N"),
        (("--infill=2", "--mauve"), "--mauve compares samples with held-out text"),
        (("--samples=2", "--judge=/nowhere"), "--judge=/nowhere is not a judge"),
    ],
)
def test_flags_of_samples_are_checked(run, given, said):
    assert_one_sentence(commands.run("evaluate", f"--workdir={run}", *given), said)
