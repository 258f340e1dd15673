"""The laws of samples, computed by enumeration, and the chi-square that holds samples to them."""

import numpy as np
from scipy.stats import chi2

from tests.enumerable import all_sequences, conditionals


def absorbing_law(joint: np.ndarray, steps: int, start: list[int]) -> np.ndarray:
    """p(x) after `steps` ancestral steps of log-linear noise with the exact denoiser: float64[V^L].

    start: tokens to begin with, V for a mask.
    """
    vocab, length = joint.shape[0], joint.ndim
    states = all_sequences(vocab + 1, length)
    one_hot = np.eye(vocab + 1)
    p0 = np.pad(conditionals(joint, states), ((0, 0), (0, 0), (0, 1)))  # never the mask
    law = (np.array(start) == states).all(1).astype(float)
    for i in range(steps):
        t, s = 1 - i / steps, 1 - (i + 1) / steps
        reveal = (t - s) / t  # (alpha_s - alpha_t) / (1 - alpha_t); 1 at the last step
        moves = (1 - reveal) * one_hot[vocab] + reveal * p0
        per_position = np.where((states == vocab)[..., None], moves, one_hot[states])
        # from every state to every state: the positions move independently
        law = law @ per_position[:, np.arange(length), states].prod(-1)
    clean = (states != vocab).all(1)
    np.testing.assert_allclose(law[clean].sum(), 1)
    return law[clean]


def chi_square(tokens: np.ndarray, law: np.ndarray) -> tuple[float, float]:
    """(Pearson's statistic, what the true law exceeds once in 10^6), rare sequences pooled."""
    vocab = round(len(law) ** (1 / tokens.shape[1]))
    number = tokens @ vocab ** np.arange(tokens.shape[1])[::-1]
    counts, expected = np.bincount(number, minlength=len(law)), len(tokens) * law
    assert counts[law == 0].sum() == 0
    rare = expected < 10
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    return statistic, chi2.isf(1e-6, df=len(counts) - 1)
