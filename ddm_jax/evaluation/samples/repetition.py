"""Repetition within a sequence of tokens: what a low perplexity has to be read with."""

from collections.abc import Iterator, Sequence

import numpy as np


def unigram_entropy(tokens: np.ndarray) -> float:
    """Entropy of the counts of its tokens, in nats: int[n]; 0 for an empty sequence.

    Zheng et al. 2024 (arXiv:2409.02908) report its mean over samples. It is at most log(min(n, V)),
    and so grows with the length: compare equal lengths only.
    """
    p = np.unique(tokens, return_counts=True)[1] / max(len(tokens), 1)
    return float(-(p * np.log(p)).sum())


def repeated(tokens: Sequence[int] | np.ndarray, n: int = 4) -> float:
    """Share of its n-grams that occurred before, from 0 to 1; 0 where there are no n-grams.

    1 - distinct / all n-grams of one sequence (seq-rep-n of Welleck et al. 2020, arXiv:1908.04319).
    """
    grams = list(_grams(tokens, n))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def longest_repeat(tokens: Sequence[int] | np.ndarray) -> int:
    """Tokens of the longest run that occurs twice, overlaps included ("aaa" has "aa")."""
    low, high = 0, max(len(tokens) - 1, 0)  # a run of `low` occurs twice, one of high + 1 does not
    while low < high:
        middle = (low + high + 1) // 2
        if repeated(tokens, middle) > 0:
            low = middle
        else:
            high = middle - 1
    return low


def _grams(tokens: Sequence[int] | np.ndarray, n: int) -> Iterator[tuple[int, ...]]:
    items = np.asarray(tokens).tolist()
    return zip(*(items[i:] for i in range(n)), strict=False)
