"""What D3PM's processes with matrices share (Austin et al. 2021): Gaussian and nearest neighbours.

The interface is process.StepProcess. Both have doubly stochastic steps, so that x_T is uniform in
the limit and the prior is uniform. Only the Gaussian holds a [T, V, V] array, its products, which
have no closed form; a process that does not fit into memory ends in a UserError.
"""

import abc
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddm_jax.diffusion.categorical import categorical
from ddm_jax.diffusion.discrete_schedules import StepSchedule
from ddm_jax.diffusion.uniform import uniform_tokens
from ddm_jax.errors import UserError

LIMIT = 2**31  # bytes of matrices that a process may hold


class MatrixProcess(abc.ABC):
    """What processes with matrices share.

    Attributes:
      schedule: alpha_bar of the T steps.
      final_kl: KL(q(x_T | x_0 = v) || uniform) of each token v, float[V].
      chunk_bytes: bytes of laws, in float32, that `corrupt` holds at once; 0 for those of one
        sequence.
    """

    schedule: StepSchedule
    final_kl: np.ndarray
    chunk_bytes: ClassVar[int]

    @abc.abstractmethod
    def row(self, x0: jax.Array, t: jax.Array) -> jax.Array:
        """q(x_t = . | x_0): int32[...] -> float[..., V]."""

    @abc.abstractmethod
    def marginal(self, p: jax.Array, t: jax.Array) -> jax.Array:
        """sum_x0 p(x_0) q(x_t = . | x_0): float[..., V] -> float[..., V]."""

    @abc.abstractmethod
    def column(self, xt: jax.Array, s: jax.Array, t: jax.Array) -> jax.Array:
        """q(x_t | x_s = .): int32[...] -> float[..., V]."""

    def condition(self, t: ArrayLike) -> jax.Array:
        """The network's time input: the step T t, float[...]."""
        return self.schedule.condition(t)

    def corrupt(
        self, keys: jax.Array, x0: jax.Array, t: jax.Array, movable: jax.Array | None = None
    ) -> jax.Array:
        """Draws x_t ~ q(x_t | x_0): key[B], int32[B, L], float[B] -> int32[B, L].

        In chunks: the laws of all positions at once would be [B, L, V]. Positions where `movable`
        (bool[B, L]) is False keep their token.
        """

        @jax.vmap
        def of_sequence(key: jax.Array, x0: jax.Array, t: jax.Array) -> jax.Array:
            return categorical(key, jnp.log(self.row(x0, t)))

        def split(x: jax.Array) -> jax.Array:
            """[B, ...] -> [chunks, B / chunks, ...], with rows of every device in each chunk."""
            return jnp.swapaxes(x.reshape(-1, chunks, *x.shape[1:]), 0, 1)

        size, laws = len(x0), 4 * x0.size * len(self.final_kl)
        least = min(size, math.ceil(laws / self.chunk_bytes)) if self.chunk_bytes else size
        chunks = next(n for n in range(least, size + 1) if size % n == 0)
        drawn = jax.lax.map(lambda chunk: of_sequence(*chunk), jax.tree.map(split, (keys, x0, t)))
        xt = jnp.swapaxes(drawn, 0, 1).reshape(x0.shape)
        return xt if movable is None else jnp.where(movable, xt, x0)

    def prior(self, keys: jax.Array, length: int) -> jax.Array:
        """x_1: int32[B, length], uniform over the vocabulary; key[B]."""
        return uniform_tokens(keys, length, len(self.final_kl))

    def prior_kl(self, x0: jax.Array) -> jax.Array:
        """KL(q(x_T | x_0) || uniform): int32[...] -> float[...]."""
        return jnp.asarray(self.final_kl)[x0]

    def reverse(
        self, keys: jax.Array, xt: jax.Array, logits: jax.Array, s: jax.Array, t: jax.Array
    ) -> jax.Array:
        """Draws x_s ~ q(x_t | x_s) sum_x0 q(x_s | x_0) p(x_0), normalised (D3PM eq. 4).

        If s and t are one step x_t stays, even where p is 0.

        Args:
          keys: key[B].
          xt: int32[B, L].
          logits: float[B, L, V] of p.
          s: float[], s <= t.
          t: float[].

        Returns:
          int32[B, L].
        """
        of_xs = self.marginal(jax.nn.softmax(logits, axis=-1), s)
        to_xt = self.column(xt, s, t)
        # what p allows may be so far from x_t that the way there rounds to 0; it is not impossible
        to_xt = jnp.maximum(to_xt, np.finfo(to_xt.dtype).tiny)
        drawn = categorical(keys, jnp.log(of_xs) + jnp.log(to_xt))
        return jnp.where(self.schedule.same(s, t), xt, drawn)


def kl_to_uniform(rows: np.ndarray) -> np.ndarray:
    """KL(row || uniform) of each row, nats: float64[V, V] -> float64[V]."""
    kl: np.ndarray = (rows * np.log(np.where(rows > 0, rows * len(rows), 1))).sum(1)
    return kl


def matmul_in_full(x: jax.Array, y: jax.Array) -> jax.Array:
    """x @ y in the full precision of the dtype.

    Tensor cores' shorter numbers would blur small probabilities.
    """
    return jnp.matmul(x, y, precision="highest")


def check_memory(name: str, vocab_size: int, steps: int, size: int) -> None:
    """Refuses a process whose matrices would take `size` bytes, if they are above LIMIT.

    Raises:
      UserError: they are.
    """
    if size > LIMIT:
        raise UserError(
            f"config.process.name={name!r} would hold {size / 2**30:.1f} GiB of matrices for "
            f"V={vocab_size} tokens and T={steps} steps, above its limit of {LIMIT / 2**30:.0f} "
            "GiB: choose a tokenizer with fewer tokens or a smaller config.process.steps, or "
            "config.process.name=d3pm_uniform or d3pm_absorbing, which hold none."
        )
