"""The absorbing process: its marginals, its posterior by enumeration, and exact masking."""

import functools
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import binom, chisquare

from ddm_jax.diffusion.absorbing import (
    Absorbing,
    mask_below,
    mask_exactly,
    mask_first,
    mask_independently,
    random_ranks,
)
from ddm_jax.diffusion.randomness import example_keys, step_key
from ddm_jax.diffusion.schedules import SCHEDULES, cosine, log_linear

MASK = 9


@functools.partial(jax.jit, static_argnums=0)
def keys_for(batch: int) -> jax.Array:
    return example_keys(step_key(0, 0), jnp.arange(batch))


jitted_exactly = jax.jit(mask_exactly, static_argnums=3)


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_is_bayes_rule_over_two_steps(name, float64):
    process, s, t = Absorbing(SCHEDULES[name].make(), MASK), 0.31, 0.74

    @jax.jit
    def run(s, t):
        ours = process.reveal(s, t), process.stay_masked(s, t)
        return *ours, process.schedule.alpha(s), process.schedule.alpha(t)

    *ours, alpha_s, alpha_t = jax.device_get(run(s, t))
    # states: 0 clean, 1 masked; alpha_{t|s} = alpha_t / alpha_s
    q_s = np.array([alpha_s, 1 - alpha_s])
    q_t_given_s = np.array([[alpha_t / alpha_s, 1 - alpha_t / alpha_s], [0, 1]])
    joint = q_s[:, None] * q_t_given_s
    np.testing.assert_allclose(joint.sum(0), [alpha_t, 1 - alpha_t], rtol=1e-12)
    posterior = joint[:, 1] / joint[:, 1].sum()
    np.testing.assert_allclose(ours, posterior, rtol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_sums_to_one_in_float32(name):
    process = Absorbing(SCHEDULES[name].make(), MASK)

    @jax.jit
    def total(t):
        return process.reveal(t - 1e-3, t) + process.stay_masked(t - 1e-3, t)

    np.testing.assert_allclose(total(np.linspace(1e-3, 1, 1000, dtype="f")), 1, atol=1e-5)


@pytest.mark.parametrize("schedule", [log_linear(), cosine()], ids=lambda s: s.name)
def test_corrupt_masks_with_one_minus_alpha(schedule):
    batch, length = 4, 20_000
    t = np.float32([0.01, 0.3, 0.8, 0.99])

    @jax.jit
    def run(keys, t):
        xt = Absorbing(schedule, MASK).corrupt(keys, jnp.zeros((batch, length), int), t)
        return xt, schedule.one_minus_alpha(t)

    xt, p = jax.device_get(run(keys_for(batch), t))
    masked = (xt == MASK).sum(axis=1)
    # each of the 8 two-sided tests fails by chance once in a million seeds
    assert np.all(masked >= binom.ppf(5e-7, length, p))
    assert np.all(masked <= binom.isf(5e-7, length, p))
    assert np.all((xt == MASK) | (xt == 0))


def test_probability_zero_masks_nothing_and_one_everything():
    x0 = np.zeros((2, 1000), np.int32)
    run = jax.jit(mask_independently, static_argnums=3)
    xt = np.asarray(run(keys_for(2), x0, np.float32([0.0, 1.0]), MASK))
    np.testing.assert_array_equal((xt == MASK).sum(axis=1), [0, 1000])


def test_tokens_keep_their_dtype_and_fixed_positions_their_token():
    x0 = np.arange(32, dtype=np.int32).reshape(2, 16)
    movable = np.arange(16)[None] % 2 == np.arange(2)[:, None]
    process = Absorbing(log_linear(), 99)

    @jax.jit
    def both(keys, x0, movable):
        exactly = mask_exactly(keys, x0, jnp.array([16, 16]), 99, movable)
        return process.corrupt(keys, x0, jnp.ones(2), movable), exactly

    for xt in jax.device_get(both(keys_for(2), x0, movable)):
        assert xt.dtype == jnp.int32
        np.testing.assert_array_equal(xt[~movable], x0[~movable])
        # alpha(1) = 1e-3: one movable token in a thousand may survive, none of these does
        assert np.all(xt[movable] == 99)


def test_prior_is_all_masks():
    prior = Absorbing(log_linear(), MASK).prior(keys_for(2), 3)
    assert prior.dtype == jnp.int32
    np.testing.assert_array_equal(prior, np.full((2, 3), MASK))


def test_exactly_k_of_the_movable_positions_are_masked():
    batch, length = 256, 33
    rng = np.random.default_rng(0)
    movable = rng.random((batch, length)) < rng.random((batch, 1))
    k = rng.integers(0, length + 1, batch)
    xt = jitted_exactly(keys_for(batch), np.zeros((batch, length), int), k, MASK, movable)
    masked = np.asarray(xt == MASK)
    np.testing.assert_array_equal(masked.sum(1), np.minimum(k, movable.sum(1)))
    assert not np.any(masked & ~movable)


def test_tied_ranks_cannot_occur():
    ranks = np.asarray(jax.jit(random_ranks, static_argnums=1)(keys_for(64), 50))
    np.testing.assert_array_equal(np.sort(ranks, axis=1), np.tile(np.arange(50), (64, 1)))


@pytest.mark.parametrize("k", [1, 2, 4])
def test_every_k_subset_of_the_movable_positions_is_alike(k):
    movable = np.array([1, 1, 0, 1, 1, 1, 0], bool)
    batch, length = 30_000, len(movable)
    x0, tiled = np.zeros((batch, length), int), np.tile(movable, (batch, 1))
    xt = jitted_exactly(keys_for(batch), x0, np.full(batch, k), MASK, tiled)
    code = np.asarray(xt == MASK) @ (1 << np.arange(length))
    subsets = [sum(1 << i for i in s) for s in combinations(np.flatnonzero(movable).tolist(), k)]
    counts = np.array([(code == subset).sum() for subset in subsets])
    assert counts.sum() == batch
    # fails by chance once in a million seeds
    assert chisquare(counts).pvalue > 1e-6


def test_oracle_radd_add_noise_t(oracle):
    arrays, _ = oracle("radd", "corruption")
    xt = arrays["add_noise_t_xt"]
    # a schedule whose time is its total noise
    p = SCHEDULES["mdlm_linear"].make(0.0, 1.0).one_minus_alpha(arrays["add_noise_t_sigma"])
    ours = mask_below(arrays["add_noise_t_u"], arrays["x0"], p, mask_of(xt, arrays["x0"]))
    np.testing.assert_array_equal(ours, xt)


def test_oracle_radd_add_noise_lambda(oracle):
    arrays, _ = oracle("radd", "corruption")
    xt, p = arrays["add_noise_lambda_xt"], arrays["add_noise_lambda_lambda"]
    ours = mask_below(arrays["add_noise_lambda_u"], arrays["x0"], p, mask_of(xt, arrays["x0"]))
    np.testing.assert_array_equal(ours, xt)


def test_oracle_radd_add_noise_k(oracle):
    arrays, _ = oracle("radd", "corruption")
    xt, k = arrays["add_noise_k_xt"], arrays["add_noise_k_k"]
    ours = mask_first(arrays["add_noise_k_perm"], arrays["x0"], k, mask_of(xt, arrays["x0"]))
    np.testing.assert_array_equal(ours, xt)


def test_oracle_mdlm_q_xt(oracle):
    arrays, _ = oracle("mdlm", "sample_t")
    x0, xt = arrays["q_xt_x0"], arrays["q_xt_xt"]
    p = arrays["q_xt_move_chance"][:, 0]
    np.testing.assert_array_equal(mask_below(arrays["q_xt_u"], x0, p, mask_of(xt, x0)), xt)


def mask_of(xt: np.ndarray, x0: np.ndarray) -> int:
    """The mask id of an oracle: the one token that x_t has where it differs from x_0."""
    (mask,) = np.unique(xt[xt != x0])
    return int(mask)
