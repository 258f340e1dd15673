"""Choice among candidate translations by minimum Bayes risk, and how much they differ."""

import functools
import math
from collections.abc import Sequence
from statistics import fmean

from sacrebleu.metrics import BLEU

from ddm_jax.errors import UserError

# of single sentences: orders that are longer than the sentence do not count
_SENTENCE = BLEU(effective_order=True, force=True)


def self_bleu(groups: Sequence[Sequence[str]]) -> float | None:
    """Mean sentence BLEU of the candidates of a source against each other, percent; low is diverse.

    The mean over ordered pairs of two candidates, then over the groups that have two or more; None
    where none has. Pairs are DiffuSeq's (Gong et al. 2022, arXiv:2210.08933), after Zhu et al. 2018
    (arXiv:1802.01886), who take all other candidates as the references of one.
    """
    pairs = [_pairwise(group) for group in groups if len(group) > 1]
    return fmean([fmean([x for row in rows for x in row]) for rows in pairs]) if pairs else None


def mbr(candidates: Sequence[str]) -> int:
    """Index of the minimum Bayes risk candidate (Kumar & Byrne 2004), under BLEU.

    It has the highest mean sentence BLEU against the others, each counted as often as it is there;
    the first of equal ones.

    Raises:
      UserError: there are no candidates.
    """
    check_some(candidates)
    gains = [math.fsum(row) for row in _pairwise(candidates)]
    return gains.index(max(gains))


def _pairwise(candidates: Sequence[str]) -> list[list[float]]:
    """Sentence BLEU of each candidate against each of the others; of equal ones 100, even empty."""

    @functools.cache
    def score(hypothesis: str, reference: str) -> float:
        if hypothesis == reference:
            return 100.0
        return _SENTENCE.sentence_score(hypothesis, [reference]).score

    return [
        [score(a, b) for j, b in enumerate(candidates) if j != i] for i, a in enumerate(candidates)
    ]


def check_some(texts: Sequence[str]) -> None:
    """Raises a UserError if there are no texts."""
    if not texts:
        raise UserError("There are no texts to score: give at least one.")
