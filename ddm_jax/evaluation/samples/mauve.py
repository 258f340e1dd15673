"""MAUVE: how close the distributions of two sets of texts are (Pillutla et al. 2021).

arXiv:2102.01454. The features of all texts are clustered. MAUVE is the area under the frontier of
the two kinds of error between the histograms of the two sets; equal histograms have 1. It depends
on the features, on the number of texts and on their length: compare equal settings only, and with
the value of two sets of real text. Published values have features of GPT-2 large.
"""

import numpy as np
from scipy.cluster.vq import kmeans2

from ddm_jax.errors import UserError

SCALING = 5.0  # c of the paper
POINTS = 25  # of the frontier
_VARIANCE = 0.9  # share that the principal components keep
_RESTARTS = 5


def mauve(p_features: np.ndarray, q_features: np.ndarray, clusters: int | None = None) -> float:
    """MAUVE of two sets of features, in (0, 1]: float[n, d], float[m, d].

    clusters: min(n, m) / 10 by default, at least 2, as in the paper's code.

    Raises:
      UserError: a set has fewer than 20 texts.
    """
    fewest = min(len(p_features), len(q_features))
    if fewest < 20:
        raise UserError(
            f"MAUVE needs 20 or more texts of each kind, and there are {fewest}: draw more. With a "
            "few hundred the value is stable."
        )
    clusters = clusters or max(2, round(fewest / 10))
    features = _reduced(np.concatenate([p_features, q_features]).astype(np.float64))
    labels = _clustered(features, clusters)
    n = len(p_features)
    p, q = (np.bincount(x, minlength=clusters) / len(x) for x in (labels[:n], labels[n:]))
    return frontier_area(p, q)


def frontier_area(
    p: np.ndarray, q: np.ndarray, scaling: float = SCALING, points: int = POINTS
) -> float:
    """Area under the divergence frontier of two histograms, float[k] each with sum 1.

    The curve runs from (0, 1) to (1, 0) through exp(-c KL(q || r)), exp(-c KL(p || r)) for the
    mixtures r = l p + (1 - l) q (eq. 1 and 2).
    """
    levels = np.linspace(1 - 1e-6, 1e-6, points)
    mixtures = [level * p + (1 - level) * q for level in levels]
    x = np.exp([-scaling * _kl(q, r) for r in mixtures])
    y = np.exp([-scaling * _kl(p, r) for r in mixtures])
    x, y = np.array([0, *x, 1]), np.array([1, *y, 0])
    return float(np.trapezoid(y, x))


def _kl(p: np.ndarray, r: np.ndarray) -> float:
    """KL(p || r) in nats, where r is positive wherever p is."""
    some = p > 0
    return float((p[some] * np.log(p[some] / r[some])).sum())


def _reduced(features: np.ndarray) -> np.ndarray:
    """Rows of length 1, projected on the principal components that keep _VARIANCE."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    kept = int(np.searchsorted(np.cumsum(s**2) / (s**2).sum(), _VARIANCE)) + 1
    return (u * s)[:, :kept]


def _clustered(features: np.ndarray, clusters: int) -> np.ndarray:
    """Labels int[n] of the best of _RESTARTS k-means."""

    def run(seed: int) -> tuple[float, np.ndarray]:
        centres, labels = kmeans2(features, clusters, iter=100, minit="++", rng=seed)
        return ((features - centres[labels]) ** 2).sum(), labels

    return min((run(seed) for seed in range(_RESTARTS)), key=lambda found: found[0])[1]
