"""Categorical draws: right tails down to 1e-6, for logits of every precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from ddm_jax.diffusion.categorical import categorical, race
from ddm_jax.diffusion.randomness import example_keys, step_key, uniforms

# entries down to 1e-6, not in order of size
TAILED = np.array([1e-6, 0.7, 1e-4, 0.3 - 1.01e-4])
# two rare entries of each kind: half of the draws say as much
TAILS = np.array([1e-6, 1e-4, 1 - 2.02e-4, 1e-4, 1e-6])
DRAWS, CHUNK = 5_000_000, 100_000  # larger chunks do not fit the cache and take twice the time


def counts_of(draw, logits, draws: int = DRAWS) -> np.ndarray:
    """How often each value comes up: int[V]."""

    # draws that last: unlike elsewhere in the tests, optimised code is worth its compilation
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    def chunk(step):
        drawn = draw(step_key(0, step), jnp.broadcast_to(logits, (CHUNK, len(logits))))
        return jnp.sum(drawn[:, None] == jnp.arange(len(logits)), axis=0)

    return sum(np.asarray(chunk(step)) for step in range(draws // CHUNK))


def fits(counts: np.ndarray, p: np.ndarray) -> bool:
    """Pearson's chi-square; rejects the true law once in a million seeds."""
    expected = counts.sum() * p / p.sum()
    statistic = np.sum((counts - expected) ** 2 / expected)
    return bool(statistic < chi2.isf(1e-6, df=len(p) - 1))


def probabilities(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits.astype(np.float64))
    return p / p.sum()


@pytest.mark.slow
def test_draws_have_the_right_tails():
    logits = np.log(TAILS).astype(np.float32)
    counts = counts_of(categorical, logits, 25_000_000)
    assert counts.sum() == 25_000_000
    assert fits(counts, probabilities(logits))


ROUNDED = np.log(TAILED).astype(jnp.bfloat16)


@pytest.mark.slow
def test_bfloat16_logits_draw_as_their_values_do():
    """The same tokens as from float32 logits of these values, key by key."""
    assert (ROUNDED.astype(np.float32) != np.log(TAILED).astype(np.float32)).any()

    rows = np.broadcast_to(ROUNDED, (1_000_000, len(TAILED)))
    u = jax.jit(lambda: uniforms(step_key(0, 0), rows.shape))()
    want = race(u, rows.astype(np.float32))
    # operation by operation: a compiled program need not round between them
    np.testing.assert_array_equal(race(u, jnp.asarray(rows)), want)
    compiled = jax.jit(lambda: categorical(step_key(0, 0), jnp.asarray(rows)))()
    np.testing.assert_array_equal(compiled, want)
    # whose law is that of the rounded values, no colder
    counts = counts_of(categorical, ROUNDED)
    assert fits(counts, probabilities(ROUNDED))
    colder = probabilities(ROUNDED) ** 1.01
    assert not fits(counts, colder / colder.sum())


@pytest.mark.slow
def test_the_tail_test_fails_for_gumbels_in_bfloat16():
    counts = counts_of(jax.random.categorical, ROUNDED)
    assert not fits(counts, probabilities(ROUNDED))


def test_a_race_is_decided_by_rarities_that_default_gumbels_cannot_tell():
    """p = 1e-9 wins at u = 1e-9 times a typical winner's, and not at three times that."""
    logits = np.log(np.float32([1.0, 1e-9]))
    typical = 1 - np.exp(-1.0)
    u = np.array([[typical, 0.9e-9], [typical, 1.1e-9]], np.float32)
    np.testing.assert_array_equal(jax.jit(race)(u, logits), [1, 0])


@jax.jit
def rows_of(logits):
    return categorical(step_key(0, 0), jnp.tile(logits, (4096, 1)))


@pytest.mark.parametrize("shift", [0.0, 1e6, -1e6])
def test_a_common_shift_of_the_logits_changes_nothing(shift):
    # multiples of 1/16 survive the shift exactly
    logits = np.float32([0.0, -0.0625, 1.5, -3.0])
    np.testing.assert_array_equal(rows_of(logits + np.float32(shift)), rows_of(logits))


def test_minus_infinity_is_never_drawn():
    @jax.jit
    def draw():
        logits = jnp.array([-jnp.inf, 0.0, -jnp.inf, -30.0])
        rows = categorical(step_key(0, 0), jnp.tile(logits, (100_000, 1)))
        return rows, categorical(step_key(0, 0), jnp.full(5, -jnp.inf))

    drawn, of_nothing = draw()
    assert set(np.unique(drawn)) <= {1, 3}
    assert of_nothing == 0


def test_each_example_draws_from_its_own_key():
    logits = np.random.default_rng(0).normal(size=(6, 5, 11)).astype(np.float32)

    @jax.jit
    def draw(logits):
        keys = example_keys(step_key(0, 0), jnp.arange(6))
        one_by_one = [categorical(keys[i], logits[i]) for i in range(6)]
        return categorical(keys, logits), jnp.stack(one_by_one)

    drawn, one_by_one = draw(logits)
    assert drawn.shape == (6, 5)
    assert drawn.dtype == jnp.int32
    np.testing.assert_array_equal(drawn, one_by_one)


def test_oracle_sedd_categorical_races_agree(oracle):
    """SEDD takes argmax p / -log(u), ours argmin -log(1 - u) / p: the same race from 1 - u."""
    arrays, _ = oracle("sedd", "sampler_traj_absorb")
    p, u = arrays["euler_denoise_probs"], arrays["euler_denoise_u"]
    with np.errstate(divide="ignore"):
        ours = jax.jit(race)(1 - u, np.log(np.maximum(p, 0)))
    np.testing.assert_array_equal(ours, arrays["euler_x_final"])
