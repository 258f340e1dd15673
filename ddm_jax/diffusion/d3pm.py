"""D3PM in T steps, closed forms: absorbing and uniform noise (Austin et al. 2021, section 3.1).

Both are the processes of absorbing.py and uniform.py on a grid of times 0, 1/T, .., 1; any stride
over the grid is exact. L_vb needs these laws of a process, per position, s < t times on the grid:

    row(x0, t)        q(x_t = . | x_0)
    marginal(p, t)    sum_x0 p(x0) q(x_t = . | x_0)
    column(xt, s, t)  q(x_t | x_s = .)
    prior_kl(x0)      KL(q(x_T | x_0) || prior)

The network receives the step T t as its time input.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.diffusion.absorbing import MaskingProcess, mask_below, per_position
from ddm_jax.diffusion.discrete_schedules import StepSchedule
from ddm_jax.diffusion.randomness import uniforms
from ddm_jax.diffusion.uniform import UniformProcess


@dataclass(frozen=True)
class D3PMAbsorbing(MaskingProcess):
    """Masking in T steps, of which the last masks all that is left."""

    schedule: StepSchedule

    def bridge(
        self, keys: jax.Array, x0: jax.Array, xt: jax.Array, s: jax.Array, t: jax.Array
    ) -> jax.Array:
        """Draws x_s ~ q(x_s | x_t, x_0), s <= t.

        Args:
          keys: key[B].
          x0: int32[B, L].
          xt: int32[B, L].
          s: float[B], on the grid.
          t: float[B], on the grid.

        Returns:
          int32[B, L].
        """
        u = uniforms(keys, x0.shape[1:])
        return mask_below(u, x0, self.stay_masked(s, t), self.mask_id, movable=xt == self.mask_id)


@dataclass(frozen=True)
class D3PMUniform(UniformProcess):
    """Redrawing in T steps."""

    schedule: StepSchedule
    by_sequence: ClassVar[bool] = False

    def bridge(
        self, keys: jax.Array, x0: jax.Array, xt: jax.Array, s: jax.Array, t: jax.Array
    ) -> jax.Array:
        """Draws x_s ~ q(x_s | x_t, x_0), s <= t.

        Args:
          keys: key[B].
          x0: int32[B, L].
          xt: int32[B, L].
          s: float[B], on the grid.
          t: float[B], on the grid.

        Returns:
          int32[B, L].
        """
        when, what = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        redrawn, shown = self.bridge_chances(x0, xt, s, t)
        u = uniforms(when, x0.shape[1:])
        drawn = self.prior(what, x0.shape[1])
        return jnp.where(u < redrawn, drawn, jnp.where(u < redrawn + shown, x0, xt))

    def bridge_chances(
        self, x0: jax.Array, xt: jax.Array, s: jax.Array, t: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """The chances that x_s is a redraw, and that it is x_0; else it is x_t: float[B, L] each.

        q(x_s | x_t, x_0) is q(x_t | x_s) q(x_s | x_0), normalised, and the product of two mixtures
        of a token and the uniform law is a mixture of these.
        """
        clean, noise = (
            per_position(x) for x in (self.schedule.alpha(s), self.schedule.one_minus_alpha(s))
        )
        lost = per_position(self.schedule.drop(s, t) / self.schedule.alpha(s))
        stays = (1 - lost) * (noise + self.vocab_size * clean * (xt == x0))
        total = stays + lost
        return lost * noise / total, lost * clean / total

    def reverse(
        self, keys: jax.Array, xt: jax.Array, logits: jax.Array, s: jax.Array, t: jax.Array
    ) -> jax.Array:
        """As `UniformProcess.reverse`, s <= t; if they are one step x_t stays, even if p is 0."""
        drawn = super().reverse(keys, xt, logits, s, t)
        return jnp.where(self.schedule.same(s, t), xt, drawn)

    def row(self, x0: jax.Array, t: jax.Array) -> jax.Array:
        """q(x_t = . | x_0): int32[...], float[] or [...] -> float[..., V]."""
        return self.marginal(jax.nn.one_hot(x0, self.vocab_size, dtype=jnp.result_type(t)), t)

    def marginal(self, p: jax.Array, t: jax.Array) -> jax.Array:
        """sum_x0 p(x0) q(x_t = . | x_0): float[..., V], float[] or [...] -> float[..., V]."""
        alpha, noise = self.schedule.alpha(t), self.schedule.one_minus_alpha(t)
        return alpha[..., None] * p + noise[..., None] / self.vocab_size

    def column(self, xt: jax.Array, s: jax.Array, t: jax.Array) -> jax.Array:
        """q(x_t | x_s = .): int32[...], float[] or [...] -> float[..., V]."""
        redrawn = (self.schedule.drop(s, t) / self.schedule.alpha(s))[..., None]
        is_xt = xt[..., None] == jnp.arange(self.vocab_size)
        return (1 - redrawn) * is_xt + redrawn / self.vocab_size

    def prior_kl(self, x0: jax.Array) -> jax.Array:
        """KL(q(x_T | x_0) || uniform), the same for every token: float[...]."""
        alpha, v = self.schedule.alpha_bar[-1], self.vocab_size
        rest = (1 - alpha) / v
        kl = (alpha + rest) * np.log1p((v - 1) * alpha) + (v - 1) * rest * np.log1p(-alpha)
        return jnp.full(x0.shape, kl)


def absorbing(alpha_bar: np.ndarray, vocab_size: int) -> D3PMAbsorbing:
    """Masking in T steps, of which the last masks all, as a chain that starts from masks needs.

    Args:
      alpha_bar: float64[T + 1]; its last entry is replaced by 0.
      vocab_size: V.
    """
    return D3PMAbsorbing(StepSchedule(np.append(alpha_bar[:-1], 0.0)), mask_id=vocab_size)


def uniform(alpha_bar: np.ndarray, vocab_size: int) -> D3PMUniform:
    """Redrawing in T steps.

    Args:
      alpha_bar: float64[T + 1].
      vocab_size: V.
    """
    return D3PMUniform(StepSchedule(alpha_bar), vocab_size)
