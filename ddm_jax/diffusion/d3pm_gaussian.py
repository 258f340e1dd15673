"""D3PM with a discretised Gaussian transition matrix (Austin et al. 2021, arXiv:2107.03006)."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.diffusion.discrete_schedules import StepSchedule
from ddm_jax.diffusion.matrices import MatrixProcess, _beta, _check_fits, _excess, _matmul


@dataclass(frozen=True, eq=False)
class D3PMGaussian(MatrixProcess):
    """Tokens move to ids nearby (D3PM appendix A.2.3); the ids must have a meaningful order.

    products: float[T + 1, V, V], Q_1 .. Q_t. A chunk of positions must share its time.
    """

    schedule: StepSchedule
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


def gaussian(alpha_bar: np.ndarray, vocab_size: int) -> D3PMGaussian:
    """The process whose beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}; alpha_bar: float64[T + 1].

    Raises:
      UserError: the products do not fit.
    """
    steps = len(alpha_bar) - 1
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    _check_fits("d3pm_gaussian", vocab_size, steps, (steps + 1) * vocab_size**2 * dtype.itemsize)
    products = np.empty((steps + 1, vocab_size, vocab_size), dtype)
    product = products[0] = np.eye(vocab_size)
    for t, beta in enumerate(_beta(alpha_bar), start=1):
        product = product @ gaussian_step(beta, vocab_size)
        products[t] = product
    return D3PMGaussian(StepSchedule(alpha_bar), products, _excess(product))
