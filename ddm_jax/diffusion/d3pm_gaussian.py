"""D3PM with a discretised Gaussian transition matrix (Austin et al. 2021, arXiv:2107.03006)."""

from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.diffusion.discrete_schedules import StepSchedule
from ddm_jax.diffusion.matrices import MatrixProcess, check_memory, kl_to_uniform, matmul_in_full


@dataclass(frozen=True, eq=False)
class D3PMGaussian(MatrixProcess):
    """Tokens move to ids nearby (D3PM appendix A.2.3); the ids must have a meaningful order.

    Its laws take one time only: a chunk of positions must share its time.

    Attributes:
      schedule: alpha_bar of the T steps.
      products: Q_1 .. Q_t for t = 0 .. T, float[T + 1, V, V].
      final_kl: see MatrixProcess.
    """

    schedule: StepSchedule
    products: np.ndarray
    final_kl: np.ndarray
    by_sequence: ClassVar[bool] = True
    chunk_bytes: ClassVar[int] = 2**24

    def row(self, x0: jax.Array, t: jax.Array) -> jax.Array:
        """q(x_t = . | x_0): int32[...], float[] -> float[..., V]."""
        return jnp.asarray(self.products)[self.schedule.index(t), x0]

    def marginal(self, p: jax.Array, t: jax.Array) -> jax.Array:
        """sum_x0 p(x0) q(x_t = . | x_0): float[..., V], float[] -> float[..., V]."""
        return matmul_in_full(p, jnp.asarray(self.products)[self.schedule.index(t)])

    def column(self, xt: jax.Array, s: jax.Array, t: jax.Array) -> jax.Array:
        """q(x_t | x_s = .): int32[...], float[] -> float[..., V]; t - s products of a step each."""
        size = len(self.final_kl)
        beta = jnp.asarray(step_beta(self.schedule.alpha_bar))
        first, last = self.schedule.index(s), self.schedule.index(t)

        def back(i: jax.Array, column: jax.Array) -> jax.Array:
            return matmul_in_full(column, gaussian_step(beta[last - 1 - i], size, jnp))

        is_xt = jax.nn.one_hot(xt, size, dtype=self.products.dtype)
        column: jax.Array = jax.lax.fori_loop(0, last - first, back, is_xt)
        return column


def step_beta(alpha_bar: np.ndarray) -> np.ndarray:
    """beta_1 .. beta_T of alpha_bar: float64[T + 1] -> float64[T]."""
    beta: np.ndarray = (alpha_bar[:-1] - alpha_bar[1:]) / alpha_bar[:-1]
    return beta


def gaussian_step(beta: jax.Array | float, size: int, xp: ModuleType = np) -> Any:
    """Q_t, symmetric, rows of sum 1 (D3PM eq. 8 of appendix A.2.3).

    Q_ij = exp(-4 (i - j)^2 / ((V - 1)^2 beta)) / sum_{|n| < V} exp(-4 n^2 / ((V - 1)^2 beta)), i !=
    j; what a row would move beyond the ends stays on its diagonal.

    Args:
      beta: beta_t, float[].
      size: V.
      xp: numpy or jax.numpy.

    Returns:
      float[V, V], an array of xp.
    """
    n = xp.arange(size)
    weight = xp.exp(-4 * (n / max(size - 1, 1)) ** 2 / beta)
    weight = weight / (2 * weight[1:].sum() + 1)
    moves = xp.where(n == 0, 0, weight)[abs(n[:, None] - n)]
    return moves + xp.eye(size, dtype=weight.dtype) * (1 - moves.sum(1))


def gaussian(alpha_bar: np.ndarray, vocab_size: int) -> D3PMGaussian:
    """The process whose beta_t = 1 - alpha_bar_t / alpha_bar_{t-1}.

    Args:
      alpha_bar: float64[T + 1].
      vocab_size: V.

    Raises:
      UserError: the products are too large to hold.
    """
    steps = len(alpha_bar) - 1
    dtype = jax.dtypes.canonicalize_dtype(np.float64)
    check_memory("d3pm_gaussian", vocab_size, steps, (steps + 1) * vocab_size**2 * dtype.itemsize)
    products = np.empty((steps + 1, vocab_size, vocab_size), dtype)
    product = products[0] = np.eye(vocab_size)
    for t, beta in enumerate(step_beta(alpha_bar), start=1):
        product = product @ gaussian_step(beta, vocab_size)
        products[t] = product
    return D3PMGaussian(StepSchedule(alpha_bar), products, kl_to_uniform(product))
