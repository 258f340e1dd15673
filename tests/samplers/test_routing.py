"""RDM's routing decisions, each against its definition in plain Python."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.samplers.routing import State, falling, lowest, noise_count, noise_rate, route


@pytest.mark.parametrize("values", [[0.0], [-1.0, 0.0], [-3.0, -2.0, -1e-5, 0.0]])
def test_exactly_k_movable_positions_are_lowest_whatever_ties(values):
    rng = np.random.default_rng(0)
    scores = rng.choice(values, (300, 9)).astype(np.float32)
    movable = rng.random(scores.shape) < 0.7
    k = rng.integers(0, movable.sum(1) + 1)
    chosen = np.asarray(lowest(jnp.asarray(scores), jnp.asarray(k), jnp.asarray(movable)))
    np.testing.assert_array_equal(chosen.sum(1), k)
    assert not (chosen & ~movable).any()
    for row in range(len(scores)):
        left = scores[row][movable[row] & ~chosen[row]]
        if k[row] and len(left):
            assert scores[row][chosen[row]].max() <= left.min()


def test_scores_of_minus_infinity_are_lowest():
    scores = jnp.asarray([[-1.0, -jnp.inf, 0.0]])
    chosen = lowest(scores, jnp.asarray([1]), jnp.ones((1, 3), bool))
    np.testing.assert_array_equal(chosen, [[False, True, False]])


@pytest.mark.parametrize("cutoff", ["linear", "cosine"])
def test_noise_count_is_the_truncated_rate_of_the_count(cutoff):
    """Also where the product is an integer, which float32 may miss from below; 0 at the end.

    Elsewhere the cosine in float32 may take what is 10^-6 below an integer for it.
    """
    count = np.arange(200)

    @jax.jit
    def ours(steps):
        return jax.vmap(lambda step: noise_count(jnp.asarray(count), step, steps, cutoff))(
            jnp.arange(123)
        )

    for steps in (*range(1, 30), 123):
        got = np.asarray(ours(steps))[:steps]
        for step in range(steps):
            if cutoff == "linear":
                want = count * (steps - 1 - step) // steps
            else:
                product = count * math.cos(math.pi / 2 * (step + 1) / steps)
                want = np.trunc(product + 1e-10).astype(int)
                close = np.ceil(product) - product
                doubtful = (close > 1e-10) & (close < 1e-6 * count)
                assert doubtful.mean() < 0.03
                want = np.where(doubtful, got[step], want)
            np.testing.assert_array_equal(got[step], want, err_msg=f"{step} of {steps}")
        assert (got[-1] == 0).all()


def test_noise_rate_of_both_cutoffs():
    step = jnp.arange(8)
    np.testing.assert_allclose(noise_rate(step, 8, "linear"), 1 - (step + 1) / 8, atol=1e-7)
    want = np.cos(np.pi / 2 * np.arange(1, 9) / 8)
    np.testing.assert_allclose(noise_rate(step, 8, "cosine"), want, atol=1e-6)


def test_conditional_routing_drops_only_the_same_token_said_with_less_certainty():
    """All cases of (in the lowest k, same token, score against the old one)."""
    cases = list(itertools.product([False, True], [False, True], [-2.0, -1.0, -0.5]))
    lows, same, scores = (np.array(x)[None] for x in zip(*cases, strict=True))
    old = np.full(same.shape, 7)
    state = State(jnp.asarray(old), jnp.full(old.shape, -1.0), jnp.zeros(old.shape, bool))
    tokens = jnp.asarray(np.where(same, 7, 3))
    arguments = state, tokens, jnp.asarray(scores), jnp.asarray(lows)
    np.testing.assert_array_equal(falling(*arguments, "cond"), lows & same & (scores < -1))
    np.testing.assert_array_equal(falling(*arguments, "uncond"), lows)
    assert not falling(*arguments, "default").any()


def test_route_writes_noise_tokens_and_keeps_the_rest():
    """b' = b v1 + (1 - b) v2 for all eight cases; a kept token keeps its old score."""
    noised, stays, falls = np.array(list(itertools.product([False, True], repeat=3))).T[:, None]
    old, new, noise = (jnp.full((1, 8), x) for x in (1, 2, 9))
    state = State(old, jnp.full((1, 8), -0.5), jnp.asarray(noised))
    after = route(state, new, jnp.full((1, 8), -0.1), noise, stays, falls)
    b = np.where(noised, ~stays, ~falls)
    np.testing.assert_array_equal(after.noised, ~b)
    np.testing.assert_array_equal(after.tokens, np.where(b, np.where(noised, 2, 1), 9))
    score = np.where(noised, -0.1, -0.5)
    np.testing.assert_allclose(after.scores, np.where(b, score, -np.inf))
