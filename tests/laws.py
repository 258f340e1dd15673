"""The laws of samples, computed by enumeration, and the chi-square that holds samples to them.

`start` is the token at each fixed position, V at a free one.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy.stats import chi2

from tests.enumerable import all_sequences, conditionals

Matrices = Callable[[float], np.ndarray]


def chain_law(
    prior: np.ndarray, moves: Iterable[np.ndarray], start: Sequence[int], vocab: int
) -> np.ndarray:
    """p(x) at the end of a chain whose positions move independently, given the state: float64[V^L].

    prior: float64[S], the law of a free position at the beginning.
    moves: p(x_s | x_t) of each step, for every position in every state, float64[S^L, L, S].
    """
    size, length = len(prior), len(start)
    states, positions = all_sequences(size, length), np.arange(length)
    one_hot = np.eye(max(size, vocab + 1))[:, :size]
    fixed = (np.array(start) < vocab)[:, None]
    law = np.where(fixed, one_hot[list(start)], prior)[positions, states].prod(-1)
    for each in moves:
        each = np.where(fixed, one_hot[states], each)
        # from every state to every state
        law = law @ each[:, positions, states].prod(-1)
    clean = (states < vocab).all(1)
    np.testing.assert_allclose(law[clean].sum(), 1)
    return np.maximum(law[clean], 0)  # powers of float times fall below 0 by rounding


def times(steps: int) -> list[tuple[float, float]]:
    """The (s, t) of equal steps from 1 to 0."""
    return [((steps - 1 - i) / steps, 1 - i / steps) for i in range(steps)]


def given(law: np.ndarray, start: Sequence[int]) -> np.ndarray:
    """The conditional law of a joint distribution, float64[V] * L -> float64[V^L]."""
    vocab, x = len(law), all_sequences(len(law), law.ndim)
    fits = ((np.array(start) == vocab) | (x == start)).all(1) * law.reshape(-1)
    return fits / fits.sum()


def absorbing_law(joint: np.ndarray, steps: int, start: Sequence[int]) -> np.ndarray:
    """After `steps` ancestral steps of log-linear noise with the exact denoiser: float64[V^L]."""
    vocab = len(joint)
    states = all_sequences(vocab + 1, joint.ndim)
    p0 = conditionals(joint, states)
    # (alpha_s - alpha_t) / (1 - alpha_t); 1 at the last step
    moves = (reveals((t - s) / t, p0, states) for s, t in times(steps))
    return chain_law(np.eye(vocab + 1)[vocab], moves, start, vocab)


def reveals(chance: np.ndarray | float, p0: np.ndarray, states: np.ndarray) -> np.ndarray:
    """A mask turns into v with chance_v p0_v, and a token stays: float64[S^L, L, V + 1].

    chance: float[] or float[V]. p0: float64[S^L, L, V].
    """
    vocab = p0.shape[-1]
    revealed = chance * p0
    moves = np.concatenate([revealed, 1 - revealed.sum(-1, keepdims=True)], axis=-1)
    return np.where((states == vocab)[..., None], moves, np.eye(vocab + 1)[states])


def posterior(matrix_at: Matrices, p0: np.ndarray, s: float, t: float) -> np.ndarray:
    """q(x_s | x_t, x_0 ~ p0) by Bayes' rule in every state: float64[S^L, L, S].

    matrix_at: t -> q(x_t | x_0) float64[S, S], the mask last if there is one. p0: [S^L, L, V].
    """
    m_s, m_t = matrix_at(s), matrix_at(t)
    states = all_sequences(len(m_t), p0.shape[1])
    moves = (p0 @ m_s[: p0.shape[-1]]) * np.linalg.solve(m_s, m_t).T[states]
    return moves / moves.sum(-1, keepdims=True)


def reverse_law(
    matrix_at: Matrices,
    clean_at: Matrices,
    prior: np.ndarray,
    steps: int,
    start: Sequence[int],
    kappa: float = 1.0,
) -> np.ndarray:
    """After `steps` steps of the reverse process: float64[V^L].

    matrix_at: as in `posterior`. clean_at: t -> p(x_0 | x_t) in every state, float64[S^L, L, V].
    prior: of x_1, float64[S]. kappa: the share of the ancestral step; the other 1 - kappa goes to
    time 0 and from there to s.
    """

    def move(s: float, t: float) -> np.ndarray:
        p0 = clean_at(t)
        again = posterior(matrix_at, p0, 0, t) @ matrix_at(s)
        return kappa * posterior(matrix_at, p0, s, t) + (1 - kappa) * again

    vocab = clean_at(1.0).shape[-1]
    return chain_law(prior, (move(s, t) for s, t in times(steps)), start, vocab)


def occupancy(steps: int, positions: int) -> np.ndarray:
    """P(how many steps are hit), if each position picks one evenly: float64[positions + 1]."""
    law = np.eye(positions + 1)[0]
    hit = np.arange(positions + 1)
    for _ in range(positions):
        law = law * hit / steps + np.append(0, (law * np.maximum(steps - hit, 0) / steps)[:-1])
    return law


def chi_square(tokens: np.ndarray, law: np.ndarray) -> tuple[float, float]:
    """(Pearson's statistic, what the true law exceeds once in 10^6): int[N, L], float64[V^L]."""
    vocab = round(len(law) ** (1 / tokens.shape[1]))
    return chi_square_of(tokens @ vocab ** np.arange(tokens.shape[1])[::-1], law)


def chi_square_of(numbers: np.ndarray, law: np.ndarray) -> tuple[float, float]:
    """The same for numbers, int[N] below len(law); rare ones are pooled."""
    counts, expected = np.bincount(numbers, minlength=len(law)), len(numbers) * law
    assert counts[law == 0].sum() == 0
    rare = expected < 10
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected > 0], expected[expected > 0]
    statistic = ((counts - expected) ** 2 / expected).sum()
    return statistic, chi2.isf(1e-6, df=max(len(counts) - 1, 1))
