"""RDM's routing: which positions are noise after a step (Zheng et al. 2023, arXiv:2302.05737).

x_s = b [v1 x_t + (1 - v1) u1] + (1 - b) [v2 x_0 + (1 - v2) u2], per position, where b = 1 if
x_t is x_0. The sampler only estimates b (`noised` is 1 - b), and v1, v2 come from the ranks of the
scores. The u are noise: from the prior where b, else with x_t kept as often as q(x_t | x_s).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from ddm_jax.samplers.signature import Integer

# the cosine comes out up to an ulp low where it is 1/2, and an even number would lose one
ROUNDING = 1e-7


class State(NamedTuple):
    """The state of the sampler between two steps.

    Attributes:
      tokens: int32[B, L].
      scores: float32[B, L], log-probabilities.
      noised: bool[B, L], whether a token counts as noise.
    """

    tokens: Array
    scores: Array
    noised: Array


def noise_rate(step: Integer, steps: Integer, cutoff: str) -> Array:
    """The part that stays noise after step 0 .. steps - 1: float32[], from below 1 down to 0.

    1 - (step + 1) / steps for "linear"; cos(pi/2 (step + 1) / steps) for "cosine".
    """
    left = (steps - 1 - step) / jnp.float32(steps)
    return left if cutoff == "linear" else jnp.sin(jnp.pi / 2 * left)


def noise_count(count: Array, step: Integer, steps: Integer, cutoff: str) -> Array:
    """trunc(count * rate), how many of int32[B] positions stay noise: int32[B]."""
    if cutoff == "linear":
        return count * (steps - 1 - step) // steps
    return (count * (noise_rate(step, steps, cutoff) + ROUNDING)).astype(jnp.int32)


def lowest(scores: Array, k: Array, movable: Array) -> Array:
    """The k movable positions of the lowest scores, of equal ones the first: bool[B, L].

    Exactly k, also where scores are equal.

    Args:
      scores: float[B, L].
      k: int32[B], at most the number of movable positions.
      movable: bool[B, L].
    """
    order = jnp.argsort(jnp.where(movable, scores, jnp.inf), axis=1, stable=True)
    rank = jnp.argsort(order, axis=1)
    return (rank < k[:, None]) & movable


def falling(state: State, tokens: Array, scores: Array, lowest: Array, routing: str) -> Array:
    """v1 = 0, where a token goes back to noise: bool[B, L].

    "uncond": all of `lowest`. "cond": of these only where the network predicts the same token as
    before, and is less sure of it. "default": nowhere.
    """
    if routing == "uncond":
        return lowest
    if routing == "cond":
        return lowest & (tokens == state.tokens) & (scores < state.scores)
    return jnp.zeros_like(lowest)


def route(
    state: State, tokens: Array, scores: Array, noise: Array, stays: Array, falls: Array
) -> State:
    """One step: noise stays noise or takes the new token, tokens are kept or fall back to noise.

    Args:
      state: before the step.
      tokens: int32[B, L], the network's prediction of x_0.
      scores: float32[B, L], of these tokens.
      noise: int32[B, L], the u.
      stays: bool[B, L], v2 = 0; read where state.noised.
      falls: bool[B, L], v1 = 0; read elsewhere.
    """
    noised = jnp.where(state.noised, stays, falls)
    return State(
        tokens=jnp.where(noised, noise, jnp.where(state.noised, tokens, state.tokens)),
        scores=jnp.where(noised, -jnp.inf, jnp.where(state.noised, scores, state.scores)),
        noised=noised,
    )
