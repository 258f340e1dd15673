"""D3PM whose tokens move to nearest neighbours in embedding space (Austin et al. 2021)."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.diffusion.discrete_schedules import StepSchedule, difference
from ddm_jax.diffusion.matrices import MatrixProcess, check_memory, kl_to_uniform, matmul_in_full
from ddm_jax.errors import UserError

MIXED = 1e-6  # what the slowest mode of the neighbour graph keeps at the end, at least


@dataclass(frozen=True, eq=False)
class D3PMNearest(MatrixProcess):
    """Tokens move along a symmetric neighbour graph (D3PM appendix A.2.4): Q = exp(c R).

    R = -U diag(rates) U^T is the rate matrix; the steps commute, so one decomposition serves all
    times.

    Attributes:
      schedule: alpha_bar of the T steps.
      vectors: U, float[V, V].
      rates: float64[V], from 0 up.
      clock: c_t for t = 0 .. T, float64[T + 1].
      final_kl: see MatrixProcess.
    """

    schedule: StepSchedule
    vectors: np.ndarray
    rates: np.ndarray
    clock: np.ndarray
    final_kl: np.ndarray
    by_sequence: ClassVar[bool] = False
    chunk_bytes: ClassVar[int] = 0  # matrix products of several sequences may round in another way

    def row(self, x0: jax.Array, t: jax.Array) -> jax.Array:
        """q(x_t = . | x_0): int32[...], float[] or [...] -> float[..., V]."""
        return self._jumps(x0, jnp.asarray(self.clock)[self.schedule.index(t)])

    def marginal(self, p: jax.Array, t: jax.Array) -> jax.Array:
        """sum_x0 p(x0) q(x_t = . | x_0): float[..., V], float[] or [...] -> float[..., V]."""
        vectors = jnp.asarray(self.vectors)
        c = jnp.asarray(self.clock)[self.schedule.index(t)]
        return self._spread(p, matmul_in_full(p, vectors), c)

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
    neighbours: int = 10,
    embedding: str = "",
) -> D3PMNearest:
    """The process of a table of embeddings; see `neighbour_process`.

    Args:
      alpha_bar: float64[T + 1].
      vocab_size: V.
      neighbours: k, neighbours of each token.
      embedding: a .npy file of float[V, D].

    Raises:
      UserError: there is no such table, it does not fit the vocabulary, or its graph is not
        connected.
    """
    check_memory("d3pm_nearest", vocab_size, len(alpha_bar) - 1, 8 * vocab_size**2)
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
    """A random walk on the graph of nearest neighbours.

    R_ij = (G + G^T)_ij / (2k), i != j, with G_ij = 1 where j is one of the k nearest of i by angle.
    c_t makes (V P(x_t = x_0) - 1) / (V - 1), with x_0 uniform, equal to alpha_bar_t: the chance
    that a token is as it was, beyond chance, which for uniform noise is alpha_bar itself. (The
    paper solves for the mutual information instead.) c_t stops growing once all has mixed.

    Args:
      alpha_bar: float64[T + 1].
      table: float[V, D], an embedding of each token.
      neighbours: k.

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
        share: np.ndarray = np.exp(-c[:, None] * rates[1:]).mean(1)
        return share

    mixed = -np.log(MIXED) / rates[1]
    clock = _solve(kept, alpha_bar, mixed)
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    last = (vectors * np.exp(-clock[-1] * rates)) @ vectors.T
    return D3PMNearest(
        StepSchedule(alpha_bar),
        vectors.astype(dtype),
        rates,
        clock,
        kl_to_uniform(np.maximum(last, 0)),
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


def _solve(
    falling: Callable[[np.ndarray], np.ndarray], wanted: np.ndarray, highest: float
) -> np.ndarray:
    """The c[T + 1] in [0, highest] where falling(c) = wanted, by bisection in log c."""
    low, high = np.full(len(wanted), -60.0), np.full(len(wanted), np.log(highest))
    for _ in range(60):
        middle = (low + high) / 2
        too_early = falling(np.exp(middle)) > wanted
        low, high = np.where(too_early, middle, low), np.where(too_early, high, middle)
    return np.where(wanted == 1, 0.0, np.exp(high))
