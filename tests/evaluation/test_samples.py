"""Samples are saved and resumed, spans are scored as by hand, speed counts what was drawn."""

import dataclasses
import functools
import hashlib
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks import timing as speed
from ddm_jax.evaluation.judges.judge import token_nats
from ddm_jax.evaluation.judges.open import judge_of
from ddm_jax.evaluation.samples import unconditional as module
from ddm_jax.evaluation.samples.infilling import evaluate_infilling, spans
from ddm_jax.evaluation.samples.measure import sample_table
from ddm_jax.evaluation.samples.unconditional import draw_samples, evaluate_samples
from ddm_jax.experiment import make_sampler
from ddm_jax.generation import generate
from ddm_jax.generation.generate import draw_batches, make_program, make_spec
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.run import with_sampler
from tests.tiny_run import LENGTH, tiny_run


@pytest.fixture(scope="module")
def layout():
    return dp(jax.devices()[:2])


@pytest.fixture(scope="module")
def run():
    return tiny_run(letter="e", push=3.0)


@pytest.fixture(scope="module")
def sure_run(run):
    """The same, but it writes e only."""
    head = run.params["head"]
    head = head | {"bias": head["bias"].at[ord("e")].set(1e4)}
    return dataclasses.replace(run, params=run.params | {"head": head})


@functools.cache
def shared_program(sample, options, apply, process):
    return make_program(functools.partial(sample, **dict(options)), apply, process)


@pytest.fixture(autouse=True)
def programs_are_shared(monkeypatch):
    """What one test has compiled, the others need not."""

    def shared(sampler, *rest):
        return shared_program(sampler.func, tuple(sampler.keywords.items()), *rest)

    monkeypatch.setattr(generate, "make_program", shared)


@pytest.fixture(scope="module")
def judge():
    return judge_of(tiny_run("ar", "e", 2.0), "ar")


def in_steps(run, steps):
    return dataclasses.replace(run, config=with_sampler(run.config, steps=steps))


@pytest.mark.slow
def test_report_has_perplexity_next_to_entropy_and_the_settings(run, layout, judge, tmp_path):
    real = ["the people of the states", "a message to the senate."]
    options = {"seed": 5, "batch_size": 4}
    report = evaluate_samples(in_steps(run, 3), layout, 6, tmp_path, judge, real, **options)
    lines = [json.loads(line) for line in Path(report["path"]).read_text().splitlines()]
    assert len(lines) == 8  # whole batches are saved
    drawn = [np.array(line["tokens"]) for line in lines[:6]]
    nats = np.concatenate(token_nats(judge, drawn))  # the same tokenizer: as drawn
    assert report["samples"]["perplexity"] == pytest.approx(np.exp(nats.mean()), rel=1e-5)
    assert report["samples"]["texts"] == 6
    assert report["reference"]["texts"] == 2
    assert (report["sampler"], report["steps"], report["seed"]) == ("event_driven", 3, 5)
    assert lines[0]["checkpoint"] == run.step
    assert 1 <= report["nfe"] <= 3
    head = sample_table(report).split("\n")[0]
    assert head.index("perplexity") < head.index("entropy")


@pytest.mark.slow
def test_samples_resume_bit_for_bit(run, layout, tmp_path):
    whole = draw_samples(run, layout, 12, tmp_path / "a", batch_size=4).lines
    first = draw_samples(run, layout, 4, tmp_path / "b", batch_size=4)
    assert len(first.lines) == 4
    saved = first.path.read_text()
    first.path.write_text(saved[: len(saved) - 40])  # a batch that a kill tore is drawn again
    rest = draw_samples(run, layout, 12, tmp_path / "b", batch_size=4)
    assert rest.path == first.path
    assert [s["tokens"] for s in rest.lines] == [s["tokens"] for s in whole]
    assert len({tuple(s["tokens"]) for s in whole}) == 12
    assert all(s["text"] == run.tokenizer.decode(np.array(s["tokens"])) for s in whole)


@pytest.mark.slow
def test_samples_are_those_of_an_older_version(run, layout, tmp_path):
    """Batch i has the key fold_in(key(seed), i), and the file is named after its settings."""
    drawn = draw_samples(run, layout, 8, tmp_path, seed=3, batch_size=4)
    program = make_program(make_sampler(run.config), run.network.apply, run.process)
    empty = np.zeros((4, LENGTH), np.int32)
    for number in range(2):
        key = jax.random.fold_in(jax.random.key(3), number)
        tokens, _ = program(run.params, key, empty, empty > 0, make_spec(4, 1.0, 0, 1.0))
        lines = drawn.lines[4 * number : 4 * number + 4]
        np.testing.assert_array_equal(tokens, [line["tokens"] for line in lines])
    key = hashlib.sha256(json.dumps(drawn.settings).encode()).hexdigest()[:8]
    assert drawn.path.name == f"samples-00000007-event_driven-4-{key}.jsonl"
    assert list(json.loads(drawn.path.read_text().splitlines()[0])) == [
        *("text", "tokens", "nfe", "seconds"),
        *("checkpoint", "weights_sha256", "sampler", "steps", "temperature", "options", "seed"),
        *("batch_size", "length", "tokenizer_sha256", "compute_dtype"),
    ]


def test_other_settings_have_other_files(run, layout, tmp_path):
    other = dataclasses.replace(run, params=jax.tree.map(lambda x: x + 1e-3, run.params))
    paths = {
        draw_samples(in_steps(which, steps), layout, 2, tmp_path, seed, batch_size=4).path
        for which, steps, seed in ((run, 2, 0), (run, 3, 0), (run, 2, 1), (other, 2, 0))
    }
    assert len(paths) == 4


def test_saved_samples_are_not_drawn_again(run, layout, tmp_path, monkeypatch):
    before = draw_samples(run, layout, 4, tmp_path, batch_size=4)
    monkeypatch.setattr(module, "compile_sampler", None)
    assert draw_samples(run, layout, 4, tmp_path, batch_size=4) == before


def test_interrupted_samples_are_saved_and_reported(run, layout, tmp_path, monkeypatch, capsys):
    write = module.write_atomically

    def write_and_stop(path, text):
        write(path, text)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(module, "write_atomically", write_and_stop)
    assert evaluate_samples(run, layout, 12, tmp_path, batch_size=4) is None
    assert "Stopped after 4 of 12 sequences" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    assert len(path.read_text().splitlines()) == 4


def test_mauve_is_asked_for_by_its_features(run, layout, tmp_path):
    def features(texts):
        return np.array([[len(text), text.count("e"), 1.0] for text in texts])

    drawn = draw_samples(run, layout, 24, tmp_path, batch_size=4)
    texts = [line["text"] for line in drawn.lines]
    report = evaluate_samples(run, layout, 24, tmp_path, None, texts, features, batch_size=4)
    assert report["mauve"] == pytest.approx(1)
    assert "MAUVE against the real text: 1.000" in sample_table(report)


def test_spans_are_apart_and_any_place_is_as_likely():
    rng = np.random.default_rng(0)
    rows = np.array([spans(rng, 12, 0.5, 3) for _ in range(6000)])
    assert (rows.sum(axis=1) == 6).all()  # two of three tokens
    edges = np.diff(np.pad(rows.astype(int), ((0, 0), (1, 1))), axis=1)
    assert ((edges == 1).sum(axis=1) == 2).all()  # never side by side
    # two spans with a gap or more: 1 + 2 + .. + 6 places, each as likely
    starts = {tuple(np.flatnonzero(row == 1)) for row in edges}
    assert len(starts) == 21
    _, counts = np.unique(
        np.array([np.flatnonzero(r == 1) for r in edges]), axis=0, return_counts=True
    )
    assert ((counts - 6000 / 21) ** 2 / (6000 / 21)).sum() < 52  # chi-square, 20 degrees, p 1e-4
    assert spans(rng, 5, 0.9, 4).sum() == 4
    assert spans(rng, 9, 1.0, 4).sum() == 8


def blocks(text, number):
    rows = [list((text[i:] + text * LENGTH)[:LENGTH].encode()) for i in range(number)]
    return np.array(rows, np.int32)


def test_infilling_counts_the_tokens_that_come_back(sure_run, layout):
    """A run that writes only the letter e is right where an e was removed."""
    tokens = blocks("been seen", 10)
    found = evaluate_infilling(sure_run, layout, tokens, None, 3, share=0.5, span=2, batch_size=4)
    rng = np.random.default_rng(3)
    masked = np.array([spans(rng, LENGTH, 0.5, 2) for _ in tokens])
    is_e = tokens == ord("e")
    assert found["drawn_tokens"] == masked.sum() == 120
    assert found["token_accuracy"] == pytest.approx(is_e[masked].mean())
    starts = np.argwhere(np.diff(np.pad(masked.astype(int), ((0, 0), (1, 0))), axis=1) == 1)
    whole = [is_e[i, a : a + 2].all() for i, a in starts]
    assert found["span_accuracy"] == pytest.approx(np.mean(whole))
    assert 0.1 < found["span_accuracy"] < found["token_accuracy"] < 0.9


def test_infilling_judges_only_the_spans(sure_run, layout, judge):
    tokens = blocks("a bed, even a red one", 6)
    arguments = (sure_run, layout, tokens)
    found = evaluate_infilling(*arguments, judge, 1, span=3, batch_size=4)
    rng = np.random.default_rng(1)
    masked = np.array([spans(rng, LENGTH, 0.25, 3) for _ in tokens])
    for name, rows in (("true", tokens), ("drawn", np.where(masked, ord("e"), tokens))):
        nats = np.array(token_nats(judge, list(rows)))[masked]
        assert found[f"perplexity_{name}"] == pytest.approx(np.exp(nats.mean()), rel=1e-5)
        # a byte is a token
        assert found[f"bits_per_byte_{name}"] == pytest.approx(nats.mean() / np.log(2), rel=1e-5)
    # a judge that reads the text itself finds the same spans by their bytes
    reader = dataclasses.replace(judge, fingerprint="", byte_lengths=np.ones(257, int))
    assert evaluate_infilling(*arguments, reader, 1, span=3, batch_size=4) == pytest.approx(found)
    blind = dataclasses.replace(judge, fingerprint="")
    assert "perplexity_true" not in evaluate_infilling(*arguments, blind, 1, span=3, batch_size=4)


@pytest.mark.slow
def test_speed_counts_what_was_drawn_after_the_first_batch(run, layout, monkeypatch):
    """A first batch of 100 s and further ones of 0.5 s, by a clock of ours."""

    def timed(*args, **kwargs):
        batches = enumerate(draw_batches(*args, **kwargs))
        return [dataclasses.replace(x, seconds=0.5 if i else 100.0) for i, x in batches]

    monkeypatch.setattr(speed, "draw_batches", timed)
    config = with_sampler(run.config, "ancestral")
    ancestral = dataclasses.replace(run, config=config)
    found = speed.sampling_speed(ancestral, layout, 3, tokens=5 * 4 * LENGTH - 1, batch_size=4)
    assert found["batches"] == 5
    assert found["batches_per_s"] == 2
    assert found["tokens_per_s"] == 2 * 4 * LENGTH
    assert found["latency_s"] == 0.5
    assert (found["nfe"], found["sampler"], found["steps"]) == (3, "ancestral", 3)
