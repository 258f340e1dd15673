"""The interface of a forward process: what objectives, samplers and evaluation may ask of any.

A process corrupts text as time t runs from 0 (clean) to 1 (noise), and gives the reverse step. It
knows nothing of the network. Classes need not inherit from these protocols; it is enough that they
have the methods.
"""

from typing import Protocol

from jax import Array
from jax.typing import ArrayLike

from ddm_jax.diffusion.discrete_schedules import StepSchedule


class Process(Protocol):
    """Any forward process over sequences of tokens."""

    def corrupt(self, keys: Array, x0: Array, t: Array, movable: Array | None = None) -> Array:
        """Draws x_t ~ q(x_t | x_0).

        Args:
          keys: key[B], one for each sequence.
          x0: int32[B, L], clean tokens.
          t: float[B], times in [0, 1].
          movable: bool[B, L]; positions where it is False keep their token (prompts, padding). None
            if all may change.

        Returns:
          x_t, int32[B, L].
        """
        ...

    def condition(self, t: ArrayLike) -> Array:
        """The number that the network receives as its time input: float[...] -> float[...]."""
        ...

    def prior(self, keys: Array, length: int) -> Array:
        """Draws x_1, from which sampling starts: key[B] -> int32[B, length]."""
        ...

    def reverse(self, keys: Array, xt: Array, logits: Array, s: Array, t: Array) -> Array:
        """Draws x_s ~ sum_x0 q(x_s | x_t, x_0) p(x_0 | x_t), position by position.

        Args:
          keys: key[B], one for each sequence.
          xt: int32[B, L], tokens at time t.
          logits: float[B, L, V] of p(x_0 | x_t).
          s: float[], the earlier time, s < t; at s = 0 no noise is left.
          t: float[], the time of xt.

        Returns:
          x_s, int32[B, L].
        """
        ...


class StepProcess(Process, Protocol):
    """A process in T steps that gives the laws of which D3PM's bound is made.

    s < t are times on the grid 0, 1/T, .., 1.
    """

    @property
    def schedule(self) -> StepSchedule:
        """alpha_bar of the T steps."""
        ...

    @property
    def by_sequence(self) -> bool:
        """Whether `row`, `marginal` and `column` take one time only, float[] (a time per position,
        float[...], otherwise)."""
        ...

    def row(self, x0: Array, t: Array) -> Array:
        """q(x_t = . | x_0): int32[...] -> float[..., V]."""
        ...

    def marginal(self, p: Array, t: Array) -> Array:
        """sum_x0 p(x_0) q(x_t = . | x_0): float[..., V] -> float[..., V]."""
        ...

    def column(self, xt: Array, s: Array, t: Array) -> Array:
        """q(x_t | x_s = .): int32[...] -> float[..., V]."""
        ...

    def prior_kl(self, x0: Array) -> Array:
        """KL(q(x_T | x_0) || prior), nats per token: int32[...] -> float[...]."""
        ...
