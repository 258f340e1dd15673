"""D3PM in T steps with matrices: discretised Gaussian and nearest neighbours (Austin et al. 2021).

The interface is that of d3pm.py. Both have doubly stochastic steps, so that x_T is uniform in the
limit and the prior is uniform. No [T, V, V] is held but the Gaussian's, whose products have no
closed form; what does not fit ends in a UserError.
"""

import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddm_jax.diffusion.categorical import categorical
from ddm_jax.errors import UserError

LIMIT = 2**31  # bytes of matrices that a process may hold


class MatrixProcess:
    """What both share; `schedule` (a Steps) and `excess`, float[V], are theirs.

    excess: KL(q(x_T | x_0 = v) || uniform). together: bytes of laws, in float32, that `corrupt`
    holds at once, or 0 for those of one sequence.
    """

    together: ClassVar[int]

    def condition(self, t: ArrayLike) -> jax.Array:
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
