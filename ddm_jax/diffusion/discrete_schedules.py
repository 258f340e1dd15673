"""Noise schedules of processes with T discrete steps: alpha_bar, float64[T + 1], alpha_bar[0] = 1.

alpha_bar[t] is the probability that no step 1..t has redrawn the token. The tables are plain numpy:
they are constants, made once and rounded where they are used. Sources: D3PM (Austin et al. 2021,
section 3), RDM (Zheng et al. 2023) whose multinomial diffusion follows Hoogeboom et al. 2021.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class StepSchedule:
    """The noise schedule of a process in T steps, as a NoiseSchedule: times round to the grid.

    Attributes:
      alpha_bar: float64[T + 1].
    """

    alpha_bar: np.ndarray

    @property
    def count(self) -> int:
        """T."""
        return len(self.alpha_bar) - 1

    def index(self, t: ArrayLike) -> jax.Array:
        """The step of a time: float[...] in [0, 1] -> int32[...] in 0..T."""
        return jnp.round(jnp.asarray(t) * self.count).astype(jnp.int32)

    def alpha(self, t: ArrayLike) -> jax.Array:
        """alpha_bar at the step of t."""
        return jnp.asarray(self.alpha_bar)[self.index(t)]

    def one_minus_alpha(self, t: ArrayLike) -> jax.Array:
        """1 - alpha_bar, rounded once."""
        return jnp.asarray(1 - self.alpha_bar)[self.index(t)]

    def drop(self, s: ArrayLike, t: ArrayLike) -> jax.Array:
        """alpha_bar(s) - alpha_bar(t)."""
        return difference(self.alpha_bar, self.index(s), self.index(t))

    def same(self, s: ArrayLike, t: ArrayLike) -> jax.Array:
        """Whether two times are one step, between which nothing happens: bool[...]."""
        return self.index(s) == self.index(t)

    def condition(self, t: ArrayLike) -> jax.Array:
        """The network's time input in discrete time: the step T t, float[...]."""
        return self.index(t).astype(float)


def difference(table: np.ndarray, i: jax.Array, j: jax.Array) -> jax.Array:
    """table[i] - table[j] of a float64 table, as accurate in float32 as its result can be."""
    rounded = table.astype(np.float32).astype(np.float64)
    high, low = jnp.asarray(rounded), jnp.asarray(table - rounded)
    return (high[i] - high[j]) + (low[i] - low[j])


def d3pm_mutual_information(steps: int) -> np.ndarray:
    """beta_t = 1 / (T - t + 1), whose product is alpha_bar_t = 1 - t/T (D3PM, absorbing)."""
    return np.arange(steps, -1, -1) / steps


def d3pm_cosine(steps: int) -> np.ndarray:
    """beta_t = min(1 - f(t)/f(t-1), 0.999), f(t) = cos((t/T + 0.008)/1.008 pi/2) (D3PM, uniform).

    f is not squared, unlike Hoogeboom's and RDM's.
    """
    f = _cosine(np.arange(steps + 1) / steps)
    return _accumulate(np.maximum(f[1:] / f[:-1], 0.001))


def d3pm_linear(steps: int, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """beta_t from `first` to `last` in equal steps (D3PM, Gaussian; Ho et al. 2020)."""
    return _accumulate(1 - np.linspace(first, last, steps))


def rdm_linear(steps: int) -> np.ndarray:
    """alpha_bar_t = 1 - t/T, clipped (RDM)."""
    return _clipped(np.linspace(1, 0, steps + 1))


def rdm_cosine(steps: int) -> np.ndarray:
    """alpha_bar_t = f(t)^2 / f(0)^2, f(t) = cos((t/T + 0.008)/1.008 pi/2), clipped (RDM)."""
    return _clipped(_cosine(np.linspace(0, 1, steps + 1)) ** 2)


def rdm_cosine_old(steps: int) -> np.ndarray:
    """The square root of rdm_cosine's clipped steps (RDM)."""
    alpha_bar: np.ndarray = np.sqrt(rdm_cosine(steps))
    return alpha_bar


def rdm_sqrt(steps: int) -> np.ndarray:
    """alpha_bar_t = 1 - sqrt(t/T + 1e-4), relative to its value at t = 0, clipped (RDM)."""
    return _clipped(1 - np.sqrt(np.linspace(0, 1, steps + 1) + 1e-4))


def _cosine(x: np.ndarray) -> np.ndarray:
    return np.cos((x + 0.008) / 1.008 * np.pi / 2)


def _clipped(f: np.ndarray) -> np.ndarray:
    """RDM's clip: f(t)/f(t-1) is held in [0.001, 1], so that no step forgets everything."""
    return _accumulate(np.clip(f[1:] / f[:-1], 0.001, 1.0))


def _accumulate(alpha: np.ndarray) -> np.ndarray:
    """alpha_bar from the steps alpha_t = 1 - beta_t: float64[T] -> float64[T + 1]."""
    return np.cumprod(np.concatenate([[1.0], alpha]))


DISCRETE_SCHEDULES: dict[str, Callable[[int], np.ndarray]] = {
    "d3pm_mutual_information": d3pm_mutual_information,
    "d3pm_cosine": d3pm_cosine,
    "d3pm_linear": d3pm_linear,
    "rdm_linear": rdm_linear,
    "rdm_cosine": rdm_cosine,
    "rdm_cosine_old": rdm_cosine_old,
    "rdm_sqrt": rdm_sqrt,
}
