"""Exact scores of enumerable distributions, and the laws of SEDD's chains, from matrices alone.

A chain is as published: weights of the next state of each position, negative ones cut off, and the
denoiser as the last step. Q[x, y] is the rate from y to x, as in the paper.
"""

from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from tests.enumerable import all_sequences
from tests.laws import chain_law


def rates(kind, vocab):
    """Q: float64[V, V], or [V + 1, V + 1] with the mask last."""
    if kind == "uniform":
        return np.ones((vocab, vocab)) / vocab - np.eye(vocab)
    q = -np.eye(vocab + 1)
    q[vocab] += 1
    return q


def exponential(q, t):
    """exp(t Q) by Q's eigenvectors: scipy's expm waits for the threads of its BLAS."""
    values, vectors = np.linalg.eig(q)
    return ((vectors * np.exp(t * values)) @ np.linalg.inv(vectors)).real  # complex in numpy 2.5


def scores(joint, q, sigma_bar):
    """p_t(x with y at i) / p_t(x): float64[S^L, L, S] for S states."""
    vocab, length, number = joint.shape[0], joint.ndim, len(q)
    p_t, states = joint, all_sequences(number, length)
    for _ in range(length):  # each pass noises the first axis and puts it last
        p_t = np.tensordot(p_t, exponential(q, sigma_bar)[:, :vocab], axes=(0, 1))
    table = np.zeros((*states.shape, number))
    for i in range(length):
        others = tuple(np.delete(states, i, axis=1).T)
        table[:, i] = np.moveaxis(p_t, i, -1)[others]
    return table / p_t[tuple(states.T)][:, None, None]


class Chain:
    """`steps` steps for a joint distribution and a network whose scores are off by a factor.

    kind: "absorbing" or "uniform". wrong: by how much log scores are off, and where.
    """

    def __init__(self, joint, kind, schedule, steps, wrong=0.0):
        self.vocab, self.length, self.kind = joint.shape[0], joint.ndim, kind
        self.steps, self.q = steps, rates(kind, joint.shape[0])
        self.states = all_sequences(len(self.q), self.length)
        with jax.enable_x64(True):
            t = np.resize(1 - np.arange(steps) / steps, 128)  # jax compiles for each shape
            self.sigma_bar = np.append(np.array(schedule.sigma_bar(t))[:steps], 0)  # clean at last
            self.rate = np.array(schedule.rate(t))[:steps]
        self.is_x = np.eye(len(self.q))[self.states]
        noise = wrong * np.random.default_rng(0).normal(size=self.is_x.shape) * (1 - self.is_x)
        self.scores = [scores(joint, self.q, s) * np.exp(noise) for s in self.sigma_bar[:-1]]

    def moves(self, rule: str, i: int) -> np.ndarray:
        """p(x_s | x_t) of every position in every state at step i: float64[S^L, L, S]."""
        last = i == self.steps - 1
        if rule == "euler" and not last:
            jumps = self.rate[i] / self.steps * self.q[self.states] * self.scores[i]
            jumps *= 1 - self.is_x
            weights = self.is_x * (1 - jumps.sum(-1, keepdims=True)) + jumps
        else:
            d = self.sigma_bar[i] - self.sigma_bar[i + 1]
            weights = (self.scores[i] @ exponential(self.q, -d).T) * exponential(self.q, d)[
                self.states
            ]
        if last and self.kind == "absorbing":
            weights[..., -1] = 0
        weights = np.maximum(weights, 0)
        return weights / weights.sum(-1, keepdims=True)

    def law(
        self,
        rule: str,
        start: Sequence[int] | None = None,
        sharpen: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """p(x) at the end, from the prior: float64[V^L]. sharpen: of the law of a jump."""
        size = len(self.q)
        absorbing = self.kind == "absorbing"
        prior = np.eye(size)[-1] if absorbing else np.full(size, 1 / size)
        start = [self.vocab] * self.length if start is None else start
        return chain_law(prior, self._sharpened(rule, sharpen), start, self.vocab)

    def _sharpened(self, rule, sharpen) -> Iterator[np.ndarray]:
        for i in range(self.steps):
            moves = self.moves(rule, i)
            if sharpen:
                leave = moves * (1 - self.is_x)
                chance = leave.sum(-1, keepdims=True)
                moves = moves * self.is_x + chance * sharpen(leave / np.maximum(chance, 1e-300))
            yield moves

    def says(self, scale_by_sigma: bool, most: int) -> dict[str, jax.Array]:
        """What a network says, with junk where nothing is to be read: the params of `told`.

        The rows behind `steps`, up to `most`, are there for the shape alone.
        """
        said = np.log(np.maximum(self.scores, 1e-30))
        if scale_by_sigma and self.kind == "absorbing":
            # log1p(-1) at the end of some schedules is no score's fault
            scale = np.log(np.expm1(self.sigma_bar[:-1])) + np.log(self.vocab)
            said += scale[:, None, None, None]
        junk = 50 * self.is_x
        if self.kind == "absorbing":  # tokens do not move, whatever is said of them
            junk = 50 * (self.states < self.vocab)[..., None] * np.arange(1.0, self.vocab + 2)
        said = (said + junk)[..., : self.vocab]
        room = most - self.steps
        return {
            "says": jnp.asarray(np.pad(said, ((0, room), *[(0, 0)] * 3)), jnp.float32),
            "sigma": jnp.asarray(np.pad(self.sigma_bar[:-1], (0, room), constant_values=1e9)),
        }
