"""Scores of text equal brute force, written from the papers, and what they must not depend on."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from ddm_jax.errors import UserError
from ddm_jax.evaluation.text_scores import bleu, chrf, distinct, rouge_l, scores
from ddm_jax.generation.candidates import mbr, self_bleu

# only letters, so that neither 13a nor ROUGE's tokenisation does more than split at spaces
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "far", "away", "home"]


def sentences(seed, number=6, longest=14):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(4, longest))) for _ in range(number)]


def near(texts, seed):
    """The texts with some words redrawn and some left out."""
    rng = np.random.default_rng(seed)
    out = []
    for text in texts:
        words = [w if rng.random() < 0.8 else rng.choice(WORDS) for w in text.split()]
        out.append(" ".join(w for w in words if rng.random() < 0.9))
    return out


def grams(items, n):
    return Counter(tuple(items[i : i + n]) for i in range(len(items) - n + 1))


def brute_bleu(hypotheses, references, sentence=False):
    """Papineni et al. 2002, an order with no match counting as 1/2, 1/4, ... (NIST's mteval)."""
    hypotheses, references = ([t.split() for t in side] for side in (hypotheses, references))
    words, wanted = (sum(map(len, side)) for side in (hypotheses, references))
    logs, doubt = [], 1
    for n in range(1, 5):
        pairs = [(grams(h, n), grams(r, n)) for h, r in zip(hypotheses, references, strict=True)]
        right = sum(min(c, r[g]) for h, r in pairs for g, c in h.items())
        total = sum(sum(h.values()) for h, _ in pairs)
        if n == 1 and not right:
            return 0.0
        if not total:
            if sentence:
                break
            return 0.0
        doubt *= 1 if right else 2
        logs.append(math.log((right or 1 / doubt) / total))
    return 100 * min(1, math.exp(1 - wanted / words)) * math.exp(sum(logs) / len(logs))


def brute_chrf(hypotheses, references, beta=2):
    """Popović 2015: mean precision and recall of character n-grams up to 6, spaces left out."""
    hypotheses, references = ([t.replace(" ", "") for t in x] for x in (hypotheses, references))
    pairs = list(zip(hypotheses, references, strict=True))
    precision, recall = [], []
    for n in range(1, 7):
        counts = [(grams(h, n), grams(r, n)) for h, r in pairs]
        right = sum((h & r).total() for h, r in counts)
        made, wanted = (sum(c[side].total() for c in counts) for side in (0, 1))
        if made and wanted:
            precision.append(right / made)
            recall.append(right / wanted)
    p, r = np.mean(precision), np.mean(recall)
    return 100 * (1 + beta**2) * p * r / (beta**2 * p + r) if p + r else 0.0


def brute_rouge(hypothesis, reference):
    """F1 of the longest common subsequence, by recursion."""

    def longest(a, b):
        if not a or not b:
            return 0
        if a[0] == b[0]:
            return 1 + longest(a[1:], b[1:])
        return max(longest(a[1:], b), longest(a, b[1:]))

    a, b = hypothesis.split(), reference.split()
    return 200 * longest(a, b) / (len(a) + len(b)) if a and b else 0.0


@pytest.mark.parametrize("seed", range(5))
def test_bleu_equals_brute_force(seed):
    references = sentences(seed)
    hypotheses = near(references, seed + 100)
    score, signature = bleu(hypotheses, references)
    np.testing.assert_allclose(score, brute_bleu(hypotheses, references), rtol=1e-9)
    assert 5 < score < 95
    for part in ("nrefs:1", "case:mixed", "tok:13a", "smooth:exp", "version:2."):
        assert part in signature


@pytest.mark.parametrize(
    ("hypotheses", "references"),
    [
        (["a b a b", "c d"], ["a c b d", "d c"]),  # only the words are right
        (["the the the the the"], ["the cat sat the mat"]),  # matches are clipped
        (["a b c d e f g h"], ["a b c d"]),  # long: no brevity penalty
        (["a b c d"], ["a b c d e f g h"]),  # short
        (["", "a b c d"], ["a b", "a b c d"]),
        (["the cat"], ["the cat"]),  # no four words: 0 by definition
        (["x y z w"], ["a b c d"]),
    ],
)
def test_bleu_of_hard_cases_equals_brute_force(hypotheses, references):
    score, _ = bleu(hypotheses, references)
    np.testing.assert_allclose(score, brute_bleu(hypotheses, references), rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_chrf_equals_brute_force(seed):
    references = sentences(seed)
    hypotheses = [*near(references, seed + 50)[:-1], "a"]
    score = chrf(hypotheses, references)
    np.testing.assert_allclose(score, brute_chrf(hypotheses, references), rtol=1e-9)
    assert 5 < score < 95


def test_rouge_l_equals_brute_force():
    references = sentences(3, longest=9)
    hypotheses = [*near(references, 4)[:-2], "", references[-1]]
    want = np.mean([brute_rouge(h, r) for h, r in zip(hypotheses, references, strict=True)])
    np.testing.assert_allclose(rouge_l(hypotheses, references), want, rtol=1e-9)
    assert brute_rouge(hypotheses[-1], references[-1]) == 100


def test_rouge_l_reads_latin_letters_and_digits_alone():
    assert rouge_l(["Für 3 CATS!"], ["f r 3 cats"]) == 100  # as its docstring says
    assert rouge_l(["running"], ["runs"]) == 0  # no stemmer
    assert rouge_l(["猫 坐"], ["猫 坐"]) == 0
    assert chrf(["猫 坐"], ["猫 坐"]) == 100


@pytest.mark.parametrize("score", [lambda h, r: bleu(h, r)[0], chrf, rouge_l])
def test_scores_are_100_for_the_references_and_fall_with_every_wrong_word(score):
    references = sentences(7)
    hypotheses, last = list(references), 100.0
    np.testing.assert_allclose(score(references, references), 100, rtol=1e-12)
    for i in range(len(references)):
        words = hypotheses[i].split()
        hypotheses[i] = " ".join([*words[:-1], "zzz"])
        now = score(hypotheses, references)
        assert now < last
        last = now


def test_scores_do_not_depend_on_the_order_of_the_pairs():
    references = sentences(8)
    hypotheses = near(references, 9)
    groups = [[h, r] for h, r in zip(hypotheses, references, strict=True)]
    forward = scores(hypotheses, references, groups)
    backward = scores(hypotheses[::-1], references[::-1], [g[::-1] for g in groups[::-1]])
    assert forward.pop("bleu_signature") == backward.pop("bleu_signature")
    assert forward == pytest.approx(backward, rel=1e-12)


def test_distinct_by_hand():
    assert distinct(["a b a b", "b a"], 1) == 2 / 6
    assert distinct(["a b a b", "b a"], 2) == 2 / 4  # ab, ba, ab; ba
    assert distinct(["a b c"], 3) == 1
    assert distinct(["a b", "c"], 3) == 0
    assert distinct([""], 1) == 0
    assert distinct(["a  b\n a"], 1) == 2 / 3


def test_self_bleu_equals_brute_force():
    groups = [near([text] * k, 5) for k, text in enumerate(sentences(6, number=4))][1:]
    means = [
        np.mean([brute_bleu([a], [b], True) for a in g for b in g if a is not b])
        for g in groups[1:]
    ]
    np.testing.assert_allclose(self_bleu(groups), np.mean(means), rtol=1e-9)
    short = ["a b", "a c a"]  # orders that they do not have do not count
    want = (brute_bleu(short[:1], short[1:], True) + brute_bleu(short[1:], short[:1], True)) / 2
    np.testing.assert_allclose(self_bleu([short]), want, rtol=1e-9)
    assert self_bleu([["a b"], ["c"]]) is None
    assert self_bleu([["a", "a"], ["", ""]]) == 100


@pytest.mark.parametrize("seed", range(6))
def test_mbr_equals_brute_force(seed):
    (text,) = sentences(seed, number=1)
    candidates = near([text] * 6, seed + 20)
    gains = [sum(brute_bleu([a], [b], True) for b in candidates if b is not a) for a in candidates]
    best = np.argmax(gains)
    assert mbr(candidates) == best
    rolled = candidates[3:] + candidates[:3]
    assert rolled[mbr(rolled)] == candidates[best]


def test_mbr_counts_duplicates_and_takes_the_first_of_equal_ones():
    assert mbr(["a b c d", "e f g h", "e f g h"]) == 1
    assert mbr(["only one"]) == 0
    assert mbr(["x", "y", "z"]) == 0
    assert mbr(["a b", "", ""]) == 1
    # against "a b c d e" both are worth as much, and against each other as well
    assert mbr(["a b c d e x", "a b c d e y", "a b c d e"]) == 2
    assert mbr(["p q r s", "a b c d e x", "a b c d e y"]) == 1


def test_mbr_scores_a_candidate_as_the_hypothesis():
    """Which of two wins depends on which of them is the reference."""
    short, long = "a b c d", "a b c d e f g h i j"
    assert brute_bleu([short], [long], True) < brute_bleu([long], [short], True)
    assert mbr([short, long]) == 1


def test_scores_gathers_all():
    references = sentences(11)
    hypotheses = near(references, 12)
    groups = [[h, r] for h, r in zip(hypotheses, references, strict=True)]
    found = scores(hypotheses, references, groups)
    assert found == {
        "bleu": bleu(hypotheses, references)[0],
        "bleu_signature": bleu(hypotheses, references)[1],
        "chrf": chrf(hypotheses, references),
        "rouge_l": rouge_l(hypotheses, references),
        "distinct_1": distinct(hypotheses, 1),
        "distinct_2": distinct(hypotheses, 2),
        "length_ratio": len(" ".join(hypotheses).split()) / len(" ".join(references).split()),
        "self_bleu": self_bleu(groups),
    }
    assert "self_bleu" not in scores(hypotheses, references)
    assert "self_bleu" not in scores(hypotheses, references, [[h] for h in hypotheses])
    json.dumps(found)


def test_scores_of_nothing_are_0():
    for hypothesis, reference in [("", "a b c d"), ("a b c d", ""), ("", "")]:
        found = scores([hypothesis], [reference])
        assert (found["bleu"], found["chrf"], found["rouge_l"]) == (0, 0, 0)
        assert found["length_ratio"] == 0


@pytest.mark.parametrize("score", [bleu, chrf, rouge_l, scores])
def test_no_texts_or_as_many_references_are_refused(score):
    with pytest.raises(UserError, match="There are no texts to score: give at least one"):
        score([], [])
    with pytest.raises(UserError, match="There are 2 texts and 1 reference: give one reference"):
        score(["a", "b"], ["a"])


def test_no_candidates_are_refused():
    for call in (lambda: mbr([]), lambda: distinct([], 1)):
        with pytest.raises(UserError, match="no texts to score"):
            call()
