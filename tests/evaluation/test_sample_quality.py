"""Entropy and repetition by hand and brute force; what a draw of low precision does to them."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom

from ddm_jax.diffusion.categorical import categorical
from ddm_jax.errors import UserError
from ddm_jax.evaluation.judges.judge import Judge
from ddm_jax.evaluation.samples.quality import measure_quality, quality_table
from ddm_jax.evaluation.samples.repetition import longest_repeat, repeated, unigram_entropy


def test_entropy_by_hand():
    assert unigram_entropy(np.array([3, 3, 3, 3])) == 0
    assert unigram_entropy(np.arange(50)) == pytest.approx(math.log(50))
    p = np.array([0.5, 0.25, 0.25])
    assert unigram_entropy(np.array([7, 1, 7, 2])) == pytest.approx(-(p * np.log(p)).sum())
    assert unigram_entropy(np.array([], np.int32)) == 0


def test_repeated_ngrams_by_hand():
    assert repeated([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repeated([5] * 10) == pytest.approx(6 / 7)
    assert repeated(range(10)) == 0
    assert repeated([1, 2, 3]) == 0
    assert repeated([1, 2, 1, 2], n=2) == pytest.approx(1 / 3)


def test_longest_repeat_equals_brute_force():
    rng = np.random.default_rng(0)
    for length in (0, 1, 2, 5, 12, 30):
        for vocab in (1, 2, 5):
            tokens = rng.integers(0, vocab, length).tolist()
            want = 0
            for n in range(1, length):
                runs = [tuple(tokens[i : i + n]) for i in range(length - n + 1)]
                if len(set(runs)) < len(runs):
                    want = n
            assert longest_repeat(tokens) == want, tokens


VOCAB, LENGTH, SAMPLES = 2048, 256, 12


def expected_entropy(law):
    """Mean of unigram_entropy over sequences of LENGTH draws of a law: sum over binomial counts."""
    counts = np.arange(1, LENGTH + 1)
    terms = -counts / LENGTH * np.log(counts / LENGTH)
    return math.fsum(float(binom.pmf(counts, LENGTH, p) @ terms) for p in law)


@pytest.mark.slow
def test_entropy_shows_gumbels_of_low_precision():
    """A race in bfloat16 over equal logits is won by the first of those that tie at the top.

    Uniforms in bfloat16 have 7 bits: 128 levels, all as likely. Token i wins at level k where all
    before it are below and none after it is above. In float32 all tokens stay as likely.
    """
    levels = np.arange(128)[:, None] / 128
    i = np.arange(VOCAB)
    low = (levels**i * (levels + 1 / 128) ** (VOCAB - 1 - i) / 128).sum(axis=0)
    np.testing.assert_allclose(low.sum(), 1)

    keys = jax.random.split(jax.random.key(0), (SAMPLES, LENGTH))
    logits = jnp.zeros((SAMPLES, LENGTH, VOCAB))

    def bfloat16(key, logits):
        noise = jax.random.gumbel(key, logits.shape, jnp.bfloat16)
        return jnp.argmax(noise + logits.astype(jnp.bfloat16))

    drawn = {
        "float32": (categorical(keys, logits), np.full(VOCAB, 1 / VOCAB)),
        "bfloat16": (jax.vmap(jax.vmap(bfloat16))(keys, logits), low),
    }
    found = {}
    for name, (tokens, law) in drawn.items():
        rows = [np.asarray(row) for row in tokens]
        texts = [" ".join(map(str, row)) for row in rows]
        found[name] = measure_quality(texts, rows)
        entropies = [unigram_entropy(row) for row in rows]
        error = np.std(entropies, ddof=1) / math.sqrt(SAMPLES)
        # 5 standard errors: wrong once in millions, and here the keys are fixed
        assert abs(found[name]["entropy"] - expected_entropy(law)) < 5 * error, name
    drop = expected_entropy(drawn["float32"][1]) - expected_entropy(low)
    assert drop > 0.3
    assert found["float32"]["entropy"] - found["bfloat16"]["entropy"] == pytest.approx(drop, 0.05)
    assert found["float32"]["distinct_1"] > 2 * found["bfloat16"]["distinct_1"]


def unigram_judge(fingerprint="own"):
    """p(a) = 1/2, p(b) = 1/4, ..."""
    return Judge(
        "unigram",
        lambda text: np.array([ord(letter) - ord("a") for letter in text], np.int32),
        lambda tokens: jnp.log(2.0) * (tokens + 1),
        window=64,
        given=0,
        fingerprint=fingerprint,
    )


def test_quality_by_hand():
    texts = ["abab", "bbbbbb"]
    found = measure_quality(texts, judge=unigram_judge())
    assert found["perplexity"] == pytest.approx(2 ** ((1 + 2 + 1 + 2 + 6 * 2) / 10), rel=1e-6)
    assert found["entropy"] == pytest.approx(math.log(2) / 2)
    assert found["tokens"] == 5
    assert found["words"] == 1
    assert found["longest_repeat"] == (2 + 5) / 2
    assert found["repeated_4grams"] == pytest.approx((0 + 2 / 3) / 2)
    assert found["distinct_1"] == 1
    assert found["self_bleu"] == 0
    assert found["judged"] == "the text, encoded anew"


def test_tokens_are_judged_as_drawn_where_the_judge_knows_them():
    drawn = [np.array([0, 0])]  # not the tokens of the text
    own = measure_quality(["cc"], drawn, unigram_judge(), fingerprint="own")
    other = measure_quality(["cc"], drawn, unigram_judge(), fingerprint="other")
    unknown = measure_quality(["cc"], drawn, unigram_judge(fingerprint=""))
    assert own["perplexity"] == pytest.approx(2)
    assert other["perplexity"] == unknown["perplexity"] == pytest.approx(8)
    assert own["judged"] == "the tokens as drawn"
    assert other["entropy"] == 0  # of the drawn tokens in any case


def test_table_never_shows_a_perplexity_without_the_entropy():
    rows = {"a": measure_quality(["abab", "ab"], judge=unigram_judge())}
    rows["b"] = measure_quality(["ab"], [np.array([0, 1])])
    lines = quality_table(rows).split("\n")
    head, first, second = (re.split(" {2,}", line) for line in lines)
    assert head[:4] == ["", "judge's perplexity", "bits per byte", "entropy, nats"]
    assert first[:4] == ["a", "2.828", "1.500", "0.69"]
    assert second[:4] == ["b", "-", "-", "0.69"]
    assert len(set(map(len, lines))) == 1


def test_what_cannot_be_scored_is_said():
    with pytest.raises(UserError, match="no texts"):
        measure_quality([], judge=unigram_judge())
    with pytest.raises(UserError, match="need a judge"):
        measure_quality(["a"])
