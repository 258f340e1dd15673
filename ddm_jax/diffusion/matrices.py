"""D3PM in T steps with matrices: discretised Gaussian and nearest neighbours (Austin et al. 2021).

The interface is that of d3pm.py. Both have doubly stochastic steps, so that x_T is uniform in the
limit and the prior is uniform. No [T, V, V] is held but the Gaussian's, whose products have no
closed form; what does not fit ends in a UserError.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.diffusion.categorical import categorical
from ddm_jax.diffusion.d3pm import Steps, difference
from ddm_jax.errors import UserError

LIMIT = 2**31  # bytes of matrices that a process may hold
MIXED = 1e-6  # what the slowest mode of the neighbour graph keeps at the end, at the least


class MatrixProcess:
    """What both share; `schedule` (a Steps) and `excess`, float[V], are theirs.

    excess: KL(q(x_T | x_0 = v) || uniform). together: bytes of laws, in float32, that `corrupt`
    holds at once, or 0 for those of one sequence.
    """

    together: ClassVar[int]

    def condition(self, t: jax.Array) -> jax.Array:
        """What the network is told of the time: the step T t, float[...]."""
        return self.schedule.condition(t)

    def corrupt(
        self, keys: jax.Array, x0: jax.Array, t: jax.Array, movable: jax.Array | None = None
    ) -> jax.Array:
        """x_t ~ q(x_t | x_0): key[B], int32[B, L], float[B] -> int32[B, L].

        In chunks: the laws of all positions at once would be [B, L, V]. Positions where `movable`
        (bool[B, L]) is False keep their token.
        """

        @jax.vmap
        def of_sequence(key: jax.Array, x0: jax.Array, t: jax.Array) -> jax.Array:
            return categorical(key, jnp.log(self.row(x0, t)))

        def split(x: jax.Array) -> jax.Array:
            """[B, ...] -> [chunks, B / chunks, ...], with rows of every device in each chunk."""
            return jnp.swapaxes(x.reshape(-1, chunks, *x.shape[1:]), 0, 1)

        size, laws = len(x0), 4 * x0.size * len(self.excess)
        least = min(size, math.ceil(laws / self.together)) if self.together else size
        chunks = next(n for n in range(least, size + 1) if size % n == 0)
        drawn = jax.lax.map(lambda chunk: of_sequence(*chunk), jax.tree.map(split, (keys, x0, t)))
        xt = jnp.swapaxes(drawn, 0, 1).reshape(x0.shape)
        return xt if movable is None else jnp.where(movable, xt, x0)

    def prior(self, keys: jax.Array, length: int) -> jax.Array:
        """x_1: int32[B, length], uniform over the vocabulary; key[B]."""
        size = len(self.excess)
        return jax.vmap(lambda key: jax.random.randint(key, (length,), 0, size))(keys)

    def prior_kl(self, x0: jax.Array) -> jax.Array:
        """KL(q(x_T | x_0) || uniform): int32[...] -> float[...]."""
        return jnp.asarray(self.excess)[x0]

    def reverse(
        self, keys: jax.Array, xt: jax.Array, logits: jax.Array, s: jax.Array, t: jax.Array
    ) -> jax.Array:
        """x_s ~ q(x_t | x_s) sum_x0 q(x_s | x_0) p(x_0), normalised (D3PM eq. 4).

        Over no step x_t stays, even where p rules it out.

        Args:
          keys: key[B]. xt: int32[B, L]. logits: float[B, L, V] of p. s, t: float[], s <= t.

        Returns:
          int32[B, L].
        """
        of_xs = self.marginal(jax.nn.softmax(logits, axis=-1), s)
        to_xt = self.column(xt, s, t)
        # what p allows may be so far from x_t that the way there rounds to 0; it is not impossible
        to_xt = jnp.maximum(to_xt, jnp.finfo(to_xt.dtype).tiny)
        drawn = categorical(keys, jnp.log(of_xs) + jnp.log(to_xt))
        return jnp.where(self.schedule.same(s, t), xt, drawn)


@dataclass(frozen=True, eq=False)
class D3PMGaussian(MatrixProcess):
    """Tokens move to ids nearby (D3PM appendix A.2.3); the ids must have a meaningful order.

    products: float[T + 1, V, V], Q_1 .. Q_t. A chunk of positions must share its time.
    """

    schedule: Steps
    products: np.ndarray
    excess: np.ndarray
    by_sequence: ClassVar[bool] = True
    together: ClassVar[int] = 2**24

    def row(self, x0: jax.Array, t: jax.Array) -> jax.Array:
        """q(x_t = . | x_0): int32[...], float[] -> float[..., V]."""
        return jnp.asarray(self.products)[self.schedule.index(t), x0]

    def marginal(self, p: jax.Array, t: jax.Array) -> jax.Array:
        """sum_x0 p(x0) q(x_t = . | x_0): float[..., V], float[] -> float[..., V]."""
        return _matmul(p, jnp.asarray(self.products)[self.schedule.index(t)])

    def column(self, xt: jax.Array, s: jax.Array, t: jax.Array) -> jax.Array:
        """q(x_t | x_s = .): int32[...], float[] -> float[..., V]; t - s products of a step each."""
        size = len(self.excess)
        beta = jnp.asarray(_beta(self.schedule.alpha_bar))
        first, last = self.schedule.index(s), self.schedule.index(t)

        def back(i: jax.Array, column: jax.Array) -> jax.Array:
            return _matmul(column, gaussian_step(beta[last - 1 - i], size, jnp))

        is_xt = jax.nn.one_hot(xt, size, dtype=self.products.dtype)
        return jax.lax.fori_loop(0, last - first, back, is_xt)


def gaussian_step(beta: jax.Array | float, size: int, xp: object = np) -> jax.Array | np.ndarray:
    """Q_t, [V, V], symmetric, rows of sum 1 (D3PM eq. 8 of appendix A.2.3).

    Q_ij = exp(-4 (i - j)^2 / ((V - 1)^2 beta)) / sum_{|n| < V} exp(-4 n^2 / ((V - 1)^2 beta)), i !=
    j; what a row would move beyond the ends stays on its diagonal. `xp` is numpy or jax.numpy.
    """
    n = xp.arange(size)
    weight = xp.exp(-4 * (n / max(size - 1, 1)) ** 2 / beta)
    weight = weight / (2 * weight[1:].sum() + 1)
    moves = xp.where(n == 0, 0, weight)[abs(n[:, None] - n)]
    return moves + xp.eye(size, dtype=weight.dtype) * (1 - moves.sum(1))


def gaussian(alpha_bar: np.ndarray, vocab_size: int, steps: int = 1000) -> D3PMGaussian:
    """The process whose beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}; alpha_bar: float64[steps + 1].

    Raises:
      UserError: the products do not fit.
    """
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    _check_fits("d3pm_gaussian", vocab_size, steps, (steps + 1) * vocab_size**2 * dtype.itemsize)
    products = np.empty((steps + 1, vocab_size, vocab_size), dtype)
    product = products[0] = np.eye(vocab_size)
    for t, beta in enumerate(_beta(alpha_bar), start=1):
        product = product @ gaussian_step(beta, vocab_size)
        products[t] = product
    return D3PMGaussian(Steps(alpha_bar), products, _excess(product))


@dataclass(frozen=True, eq=False)
class D3PMNearest(MatrixProcess):
    """Tokens move along a symmetric neighbour graph (D3PM appendix A.2.4): Q = exp(c R).

    R = -U diag(rates) U^T is the rate matrix; the steps commute, so one decomposition serves all
    times. vectors: U, float[V, V]. rates: float64[V], from 0 up. clock: c_t, float64[T + 1].
    """

    schedule: Steps
    vectors: np.ndarray
    rates: np.ndarray
    clock: np.ndarray
    excess: np.ndarray
    by_sequence: ClassVar[bool] = False
    together: ClassVar[int] = 0  # matrix products of several sequences may round in another way

    def row(self, x0: jax.Array, t: jax.Array) -> jax.Array:
        """q(x_t = . | x_0): int32[...], float[] or [...] -> float[..., V]."""
        return self._jumps(x0, jnp.asarray(self.clock)[self.schedule.index(t)])

    def marginal(self, p: jax.Array, t: jax.Array) -> jax.Array:
        """sum_x0 p(x0) q(x_t = . | x_0): float[..., V], float[] or [...] -> float[..., V]."""
        vectors = jnp.asarray(self.vectors)
        c = jnp.asarray(self.clock)[self.schedule.index(t)]
        return self._spread(p, _matmul(p, vectors), c)

    def column(self, xt: jax.Array, s: jax.Array, t: jax.Array) -> jax.Array:
        """q(x_t | x_s = .), a row too: int32[...], float[] or [...] -> float[..., V]."""
        i, j = self.schedule.index(s), self.schedule.index(t)
        return self._jumps(xt, difference(self.clock, j, i))

    def _jumps(self, x: jax.Array, c: jax.Array) -> jax.Array:
        one_hot = jax.nn.one_hot(x, len(self.rates), dtype=self.vectors.dtype)
        return self._spread(one_hot, jnp.asarray(self.vectors)[x], c)

    def _spread(self, p: jax.Array, modes: jax.Array, c: jax.Array) -> jax.Array:
        """p exp(c R) from p [..., V] and its modes p U.

        As p + p (exp(c R) - 1): the rounding is then relative to what moves, which is little in
        the first steps, and p itself stays exact.
        """
        vectors, rates = jnp.asarray(self.vectors), jnp.asarray(self.rates)
        moved = jax.lax.dot_general(
            modes * jnp.expm1(-c[..., None] * rates),
            vectors,
            (((modes.ndim - 1,), (1,)), ((), ())),
            precision="highest",
        )
        return jnp.maximum(p + moved, 0)


def nearest(
    alpha_bar: np.ndarray,
    vocab_size: int,
    steps: int = 1000,
    neighbours: int = 10,
    embedding: str = "",
) -> D3PMNearest:
    """The process of a table of embeddings, a .npy file of float[V, D]; see `neighbour_process`.

    Raises:
      UserError: there is no such table, it does not fit the vocabulary, or its graph falls apart.
    """
    del steps  # the length of alpha_bar says it
    _check_fits("d3pm_nearest", vocab_size, len(alpha_bar) - 1, 8 * vocab_size**2)
    if not Path(embedding).is_file():
        raise UserError(
            f"config.process.embedding={embedding!r} is not a file: config.process.name="
            "'d3pm_nearest' needs a .npy table float[V, D] with a row for each token; "
            "docs/objectives.md shows how to make one from the training text."
        )
    try:
        table = np.load(embedding, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"config.process.embedding={embedding!r} cannot be read: {error}. Save the table with "
            "numpy.save."
        ) from error
    if table.ndim != 2 or len(table) != vocab_size or not np.isfinite(table).all():
        raise UserError(
            f"config.process.embedding={embedding!r} has shape {table.shape}, or holds a number "
            f"that is not finite: give float[{vocab_size}, D], a row for each token of the "
            "tokenizer."
        )
    if neighbours >= vocab_size:
        raise UserError(
            f"config.process.neighbours={neighbours} is not below the {vocab_size} tokens of the "
            "vocabulary: choose fewer."
        )
    return neighbour_process(alpha_bar, table, neighbours)


def neighbour_process(alpha_bar: np.ndarray, table: np.ndarray, neighbours: int) -> D3PMNearest:
    """Random walk on the graph of nearest neighbours of table float[V, D].

    R_ij = (G + G^T)_ij / (2k), i != j, with G_ij = 1 where j is one of the k nearest of i by angle.
    c_t makes (V P(x_t = x_0) - 1) / (V - 1), with x_0 uniform, equal to alpha_bar_t: the chance
    that a token is as it was beyond mere luck, which for uniform noise is alpha_bar itself. (The
    paper solves for the mutual information instead.) It is held at the time when all has mixed.

    Raises:
      UserError: the graph is not connected.
    """
    rate = _neighbour_graph(table, neighbours) / (2 * neighbours)
    np.fill_diagonal(rate, -rate.sum(1))
    values, vectors = np.linalg.eigh(-rate)
    rates = np.maximum(values, 0)
    if rates[1] < 1e-9:
        parts = int((rates < 1e-9).sum())
        raise UserError(
            f"config.process.neighbours={neighbours} leaves the neighbour graph in {parts} parts, "
            "between which no token can move: choose more neighbours, or an embedding without "
            "equal rows."
        )
    rates[0] = 0.0

    def kept(c: np.ndarray) -> np.ndarray:
        return np.exp(-c[:, None] * rates[1:]).mean(1)

    mixed = -np.log(MIXED) / rates[1]
    clock = _solve(kept, alpha_bar, mixed)
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    last = (vectors * np.exp(-clock[-1] * rates)) @ vectors.T
    return D3PMNearest(
        Steps(alpha_bar), vectors.astype(dtype), rates, clock, _excess(np.maximum(last, 0))
    )


def _neighbour_graph(table: np.ndarray, neighbours: int) -> np.ndarray:
    """G + G^T, float64[V, V], of the k nearest others of each row by angle."""
    size = len(table)
    norm = np.linalg.norm(table, axis=1, keepdims=True)
    unit = table / np.where(norm > 0, norm, 1)
    graph = np.zeros((size, size))
    for first in range(0, size, 1024):
        near = unit[first : first + 1024] @ unit.T
        here = np.arange(len(near))
        near[here, first + here] = -np.inf
        best = np.argpartition(-near, neighbours - 1, axis=1)[:, :neighbours]
        graph[first + here[:, None], best] = 1
    return graph + graph.T


def _solve(falling: Callable, wanted: np.ndarray, highest: float) -> np.ndarray:
    """The c[T + 1] in [0, highest] where falling(c) = wanted, by bisection in log c."""
    low, high = np.full(len(wanted), -60.0), np.full(len(wanted), np.log(highest))
    for _ in range(60):
        middle = (low + high) / 2
        too_early = falling(np.exp(middle)) > wanted
        low, high = np.where(too_early, middle, low), np.where(too_early, high, middle)
    return np.where(wanted == 1, 0.0, np.exp(high))


def _beta(alpha_bar: np.ndarray) -> np.ndarray:
    """beta_1 .. beta_T of alpha_bar."""
    return (alpha_bar[:-1] - alpha_bar[1:]) / alpha_bar[:-1]


def _excess(last: np.ndarray) -> np.ndarray:
    """KL(row || uniform) of each row, float64[V, V] -> float64[V]."""
    return (last * np.log(np.where(last > 0, last * len(last), 1))).sum(1)


def _matmul(x: jax.Array, y: jax.Array) -> jax.Array:
    """x @ y without tensor cores' shorter numbers, which would blur small probabilities."""
    return jnp.matmul(x, y, precision="highest")


def _check_fits(name: str, vocab_size: int, steps: int, size: int) -> None:
    if size > LIMIT:
        raise UserError(
            f"config.process.name={name!r} would hold {size / 2**30:.1f} GiB of matrices for "
            f"V={vocab_size} tokens and T={steps} steps, above its limit of {LIMIT / 2**30:.0f} "
            "GiB: choose a tokenizer with fewer tokens or a smaller config.process.steps, or "
            "config.process.name=d3pm_uniform or d3pm_absorbing, which hold none."
        )
