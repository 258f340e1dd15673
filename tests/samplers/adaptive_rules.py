"""The rules of adaptive unmasking in numpy, and the law of what is drawn by them."""

import itertools
from collections.abc import Sequence

import numpy as np


def doubt(name: str, p: np.ndarray) -> float:
    """Of a rule about one position: float64[V]."""
    best = sorted(p, reverse=True)
    return {
        "confidence": -best[0],
        "margin": best[1] - best[0],
        "entropy": -sum(q * np.log(q) for q in p if q > 0),
    }[name]


def chosen(
    name: str, p: np.ndarray, masked: list[int], masks: int, step: int, steps: int, gamma: float
) -> list[int]:
    """The positions that are revealed next. p: float64[L, V]. masks: how many at the start."""
    surest = sorted(masked, key=lambda i: (doubt(name, p[i]), i))
    if name != "entropy":
        parts = np.array_split(np.arange(masks), min(steps, masks))
        return surest[: len(parts[step])]
    h = [doubt(name, p[i]) for i in surest]
    number = 1
    while number < len(h) and sum(h[: number + 1]) - max(h[: number + 1]) <= gamma:
        number += 1
    return surest[:number]


def adaptive_law(
    name: str, p: np.ndarray, start: Sequence[int], steps: int = 1, gamma: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """p(x), float64[V^L], and p(nfe), float64[L + 1], of a network p [(V + 1)^L, L, V]."""
    length, vocab = p.shape[1:]
    law, nfe = np.zeros((vocab,) * length), np.zeros(length + 1)
    digits = (vocab + 1) ** np.arange(length)[::-1]

    def follow(x: np.ndarray, step: int, chance: float) -> None:
        masked = [i for i in range(length) if x[i] == vocab]
        if not masked:
            law[tuple(x)] += chance
            nfe[step] += chance
            return
        now = p[x @ digits]
        new = chosen(name, now, masked, list(start).count(vocab), step, steps, gamma)
        for tokens in itertools.product(range(vocab), repeat=len(new)):
            later = x.copy()
            later[new] = tokens
            follow(later, step + 1, chance * now[new, tokens].prod())

    follow(np.array(start), 0, 1.0)
    np.testing.assert_allclose([law.sum(), nfe.sum()], 1)
    return law.reshape(-1), nfe
