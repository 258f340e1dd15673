"""Exact means of losses: everything that short sequences can become, each with its chance."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.models.readout import Readout
from tests.batch import batch_of
from tests.enumerable import all_sequences
from tests.masking import gauss

VOCAB = 3
Nodes = tuple[np.ndarray, np.ndarray]  # levels of noise and the chance of each, float[T] both


def even(low: float, high: float, count: int = 8) -> Nodes:
    """Gauss-Legendre nodes of a mean over [low, high]."""
    levels, weights = gauss(low, high, count)
    return levels, weights / (high - low)


def crowded(low: float, count: int = 48) -> Nodes:
    """Those of a mean over [low, 1], crowded at `low`, for integrands that go like t log t."""
    x, w = even(0, 1, count)
    return low + (1 - low) * x**4, 4 * x**3 * w


@dataclass(frozen=True)
class Corruptions:
    """Every x0 with every x_t that it can become at some levels of noise.

    Attributes:
      levels: the times, mask ratios or numbers of masks that a loss takes, float[T].
      chance: of the level and of x_t at it, float[T, V^L, S^L].
      length: L.
    """

    levels: np.ndarray
    chance: np.ndarray
    length: int

    @functools.cached_property
    def rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The numbers of the level, of x0 and of x_t where there is a chance, int[N] each."""
        return np.nonzero(self.chance)

    @functools.cached_property
    def tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """x0 and x_t in each row, int[N, L] both."""
        _, x0, xt = self.rows
        states = round(self.chance.shape[2] ** (1 / self.length))
        return all_sequences(VOCAB, self.length)[x0], all_sequences(states, self.length)[xt]

    def mean(self, values: np.ndarray) -> np.ndarray:
        """float[N] -> the mean for each x0, float64[V^L]."""
        return np.bincount(self.rows[1], self.chance[self.rows] * values)

    def changed(self) -> np.ndarray:
        """The mean share of the tokens that are not those of x0, for each x0."""
        x0, xt = self.tokens
        return self.mean((x0 != xt).mean(1))


def corruptions(matrix_at: Callable[[float], np.ndarray], nodes: Nodes, length: int) -> Corruptions:
    """Of tokens that move independently. matrix_at: level -> q(x_t | x_0), float64[.., S]."""
    levels, weights = nodes
    matrices = np.stack([matrix_at(level)[:VOCAB] for level in levels])
    x0 = all_sequences(VOCAB, length)
    states = all_sequences(matrices.shape[2], length)
    chance = matrices[:, x0[:, None], states].prod(-1)
    return Corruptions(np.asarray(levels), weights[:, None, None] * chance, length)


def subsets_masked(length: int) -> Corruptions:
    """Every number of masks equally often, and each set of that size; the level is the number."""
    nodes = np.arange(1, length + 1), np.ones(length)
    half = corruptions(lambda k: masking_matrix(0.5), nodes, length)
    k, number = half.levels, (all_sequences(VOCAB + 1, length) == VOCAB).sum(1)
    chance = half.chance * (number == k[:, None, None])
    return Corruptions(k, chance / chance.sum(2, keepdims=True) / length, length)


def masking_matrix(m: float) -> np.ndarray:
    """A token is masked with chance m: float64[V, V + 1]."""
    return np.hstack([(1 - m) * np.eye(VOCAB), np.full((VOCAB, 1), m)])


def said(answers: jax.Array) -> Callable[..., Readout]:
    """A network that has answered float[b, L, V] already."""
    vocab = answers.shape[-1]
    eye = jnp.eye(vocab, dtype=answers.dtype)
    return lambda *_, **__: Readout(answers, eye, jnp.zeros(vocab, answers.dtype), vocab)


@functools.partial(jax.jit, static_argnums=(0, 1))
def loss_of(loss_at: Callable, process, answers: jax.Array, x0, xt, level):
    """LossOutput where the network has answered float[N, L, V]; x0 and xt int[N, L], no padding."""
    return loss_at(said(answers), {}, batch_of(x0), xt, level, process)


def means(
    loss_at: Callable, process, every: Corruptions, says: np.ndarray, field: str = "loss"
) -> np.ndarray:
    """The mean for each x0, float64[V^L]. says: answers to each x_t at each level [T or 1, ..]."""
    step, _, state = every.rows
    answers = says[step if len(says) > 1 else 0, state]
    with jax.enable_x64(True):
        out = loss_of(loss_at, process, answers, *every.tokens, every.levels[step])
        return every.mean(np.asarray(getattr(out, field)))


def unseen(joint: np.ndarray, last: np.ndarray) -> np.ndarray:
    """KL(q(x_1 | x0) || q(x_1)) for each x0, last = q(x_1 | x_0) of a token: float64[V^L].

    What a bound over all times leaves of -log p(x0), if its denoiser is exact.
    """
    law = corruptions(lambda _: last, (np.zeros(1), np.ones(1)), joint.ndim).chance[0]
    ratio = np.where(law > 0, law, 1) / np.where(law > 0, joint.reshape(-1) @ law, 1)
    return (law * np.log(ratio)).sum(1)
