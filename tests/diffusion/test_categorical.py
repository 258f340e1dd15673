"""Categorical draws: right tails down to 1e-6, for logits of every precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from ddm_jax.diffusion.categorical import categorical, race
from ddm_jax.diffusion.randomness import example_keys, step_key

# entries down to 1e-6, not in order of size
TAILED = np.array([1e-6, 0.7, 1e-4, 0.3 - 1.01e-4])
DRAWS, CHUNK = 50_000_000, 1_000_000


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


def probabilities(logits: jax.Array) -> np.ndarray:
    return np.asarray(jax.nn.softmax(logits.astype(jnp.float32)), np.float64)


def test_draws_have_the_right_tails():
    logits = jnp.log(TAILED)
    assert logits.dtype == jnp.float32
    counts = counts_of(categorical, logits)
    assert counts.sum() == DRAWS
    assert fits(counts, probabilities(logits))


def test_bfloat16_logits_draw_as_their_values_do():
    """The same tokens as from float32 logits of these values, key by key."""
    rounded = jnp.log(TAILED).astype(jnp.bfloat16)
    assert (rounded.astype(jnp.float32) != jnp.log(TAILED)).any()
    rows = [
        jnp.broadcast_to(x, (CHUNK, len(TAILED))) for x in (rounded, rounded.astype(jnp.float32))
    ]
    of_bfloat16, of_float32 = (categorical(step_key(0, 0), x) for x in rows)
    np.testing.assert_array_equal(of_bfloat16, of_float32)
    # whose law is that of the rounded values, no colder
    counts = counts_of(categorical, rounded, DRAWS // 10)
    assert fits(counts, probabilities(rounded))
    colder = probabilities(rounded) ** 1.01
    assert not fits(counts, colder / colder.sum())


def test_the_tail_test_fails_for_gumbels_in_bfloat16():
    logits = jnp.log(TAILED).astype(jnp.bfloat16)
    # a tenth of the draws is enough
    counts = counts_of(jax.random.categorical, logits, DRAWS // 10)
    assert not fits(counts, probabilities(logits))


def test_a_race_is_decided_by_rarities_that_default_gumbels_cannot_tell():
    """p = 1e-9 wins at u = 1e-9 times a typical winner's, and not at three times that."""
    logits = jnp.log(jnp.array([1.0, 1e-9]))
    typical = 1 - np.exp(-1.0)
    u = jnp.array([[typical, 0.9e-9], [typical, 1.1e-9]], jnp.float32)
    np.testing.assert_array_equal(race(u, logits), [1, 0])


@pytest.mark.parametrize("shift", [0.0, 1e6, -1e6])
def test_a_common_shift_of_the_logits_changes_nothing(shift):
    # multiples of 1/16 survive the shift exactly
    logits = jnp.array([0.0, -0.0625, 1.5, -3.0], jnp.float32)
    draw = categorical(step_key(0, 0), jnp.tile(logits + shift, (4096, 1)))
    expected = categorical(step_key(0, 0), jnp.tile(logits, (4096, 1)))
    np.testing.assert_array_equal(draw, expected)


def test_minus_infinity_is_never_drawn():
    logits = jnp.array([-jnp.inf, 0.0, -jnp.inf, -30.0])
    drawn = categorical(step_key(0, 0), jnp.tile(logits, (100_000, 1)))
    assert set(np.unique(drawn)) <= {1, 3}
    assert categorical(step_key(0, 0), jnp.full(5, -jnp.inf)) == 0


def test_each_example_draws_from_its_own_key():
    logits = jax.random.normal(step_key(1, 0), (6, 5, 11))
    keys = example_keys(step_key(0, 0), jnp.arange(6))
    draw = jax.jit(categorical)
    drawn = draw(keys, logits)
    assert drawn.shape == (6, 5)
    assert drawn.dtype == jnp.int32
    alone = jnp.stack([draw(key, row) for key, row in zip(keys, logits, strict=True)])
    np.testing.assert_array_equal(drawn, alone)


def test_oracle_sedd_categorical_races_agree(oracle):
    """SEDD takes argmax p / -log(u), ours argmin -log(1 - u) / p: the same race from 1 - u."""
    arrays, _ = oracle("sedd", "sampler_traj_absorb")
    x_final = arrays["euler_x_final"]
    p, u = arrays["euler_denoise_probs"], arrays["euler_denoise_u"]
    ours = race(1 - u, jnp.log(jnp.maximum(p, 0)))
    np.testing.assert_array_equal(ours, x_final)
