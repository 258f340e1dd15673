"""Randomness belongs to the example: no split of the batch changes a bit of it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from ddm_jax.diffusion.absorbing import Absorbing, mask_exactly
from ddm_jax.diffusion.categorical import categorical
from ddm_jax.diffusion.randomness import (
    TIMES,
    _unit_interval,
    example_keys,
    step_key,
    stratified,
    stratify,
    uniforms,
)
from ddm_jax.diffusion.schedules import log_linear

BATCH, LENGTH = 12, 16
X0 = np.arange(BATCH * LENGTH, dtype=np.int32).reshape(BATCH, LENGTH) % 7


def corrupted(index: np.ndarray) -> dict[str, jax.Array]:
    """Everything random about the examples with these global indices."""
    step = step_key(3, 5)
    keys, x0 = example_keys(step, index), jnp.asarray(X0)[index]
    t = stratified(step, index, BATCH)
    return {
        "times": t,
        "uniforms": uniforms(keys, (2, 3)),
        "corrupt": Absorbing(log_linear(), mask_id=7).corrupt(keys, x0, t),
        "exactly": mask_exactly(keys, x0, jnp.asarray(index, jnp.int32), mask_id=7),
        "categorical": categorical(keys, jax.nn.one_hot(x0, 7)),
    }


compiled = jax.jit(corrupted)


@pytest.mark.parametrize("parts", [3, BATCH])
def test_any_split_of_the_batch_draws_the_same_bits(parts):
    index = np.arange(BATCH)
    parts = [compiled(part) for part in np.split(index, parts)]
    for name, expected in compiled(index).items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), expected)


@pytest.mark.parametrize("batch_size", [3, 12, 1000, 2**24])
def test_times_are_exact_whatever_the_program(batch_size):
    index = np.unique(np.linspace(0, batch_size - 1, 1000).astype(np.int64))
    t = jax.jit(stratify, static_argnums=2)(jnp.float32(0.25), index, batch_size)
    fixed = (2**30 + index * 2**32 // batch_size) % 2**32
    exact = (fixed.astype(np.float32) * np.float32(2**-32)) + np.float32(2**-33)
    np.testing.assert_array_equal(t, np.minimum(exact, np.float32(1 - 2**-24)))


def test_a_sharded_batch_draws_the_same_bits():
    devices = jax.devices()[:4]
    if len(devices) < 4:
        pytest.skip("fewer than 4 devices")
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    draw = jax.jit(lambda index: uniforms(example_keys(step_key(3, 5), index), (LENGTH,)))
    index = jnp.arange(BATCH)
    sharded = draw(jax.device_put(index, rows))
    assert len(sharded.sharding.device_set) == 4
    np.testing.assert_array_equal(sharded, draw(index))


def test_seed_step_and_index_each_change_the_draw():
    @jax.jit
    def draw(seed, step, index):
        return uniforms(example_keys(step_key(seed, step), index[None]))[0]

    def number(*k):
        return float(np.asarray(draw(*np.int32(k))))

    assert len({number(*k) for k in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}) == 4


def test_steps_may_be_traced():
    traced = jax.jit(lambda step: uniforms(step_key(0, step)))(np.int32(4))
    assert traced == jax.jit(lambda: uniforms(step_key(0, 4)))()


def test_keys_do_not_follow_the_default_generator():
    with jax.default_prng_impl("rbg"):
        assert jax.random.key_impl(step_key(0, 4)) == "threefry2x32"


def test_uniforms_stay_inside_the_open_interval_and_reach_down_to_2_to_minus_33():
    bits = np.array([0, 1, 2**31, 2**32 - 2**8, 2**32 - 1], np.uint32)
    u = np.asarray(jax.jit(_unit_interval)(bits), np.float64)
    np.testing.assert_array_equal(u[:3], [2.0**-33, 3 * 2.0**-33, 0.5])
    assert np.all(u < 1)


def test_uniforms_are_uniform():
    # fails by chance once in a million seeds
    u = np.asarray(jax.jit(lambda: uniforms(step_key(0, 0), (200_000,)))())
    assert chisquare(np.histogram(u, bins=64, range=(0, 1))[0]).pvalue > 1e-6


@functools.partial(jax.jit, static_argnums=(0, 2))
def times_of(name, step, count):
    """Those of a whole batch."""
    return TIMES[name](step_key(0, step), jnp.arange(count), count)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 512])
@pytest.mark.parametrize("step", range(5))
def test_each_stratum_gets_one_time(batch_size, step):
    t = np.asarray(times_of("stratified", step, batch_size))
    # the strata start at the smallest time; middles are safe from rounding at their edges
    stratum = np.floor((t - t.min()) * batch_size + 0.5).astype(int)
    np.testing.assert_array_equal(np.sort(stratum), np.arange(batch_size))
    assert np.all((t > 0) & (t < 1))


def test_the_offset_is_no_examples_draw():
    @jax.jit
    def both():
        step = step_key(0, 0)
        offset = stratified(step, jnp.array([0]), 1)
        return offset, uniforms(example_keys(step, jnp.arange(BATCH)))

    offset, drawn = jax.device_get(both())
    assert np.abs(drawn - offset).min() > 1e-6


def test_the_offset_is_uniform_over_steps():
    # fails by chance once in a million seeds
    t = jax.jit(jax.vmap(lambda step: stratified(step_key(0, step), jnp.arange(1), 1)[0]))(
        np.arange(20_000)
    )
    assert chisquare(np.histogram(t, bins=32, range=(0, 1))[0]).pvalue > 1e-6


def test_times_never_touch_the_ends():
    u = np.float32([0.0, 0.5, 1 - 2.0**-24])
    t = np.asarray(jax.jit(stratify, static_argnums=2)(u, np.array([0, 1, 1]), 2))
    assert np.all((t > 0) & (t < 1))


@pytest.mark.parametrize("name", TIMES)
def test_times_belong_to_the_example_and_are_uniform_over_steps(name):
    """Of 2,000 steps; the chi-square rejects the right law once in 10^6."""
    index = np.arange(BATCH)
    draw = jax.jit(jax.vmap(lambda step: TIMES[name](step_key(0, step), index, BATCH)))
    times = np.asarray(draw(np.arange(2_000)))
    part = jax.jit(lambda step: TIMES[name](step_key(0, step), index[5:], BATCH))(7)
    np.testing.assert_array_equal(part, times[7, 5:])
    for i in (0, 1, BATCH - 1):
        assert chisquare(np.histogram(times[:, i], 20, (0, 1))[0]).pvalue > 1e-6


def test_antithetic_times_come_in_pairs_and_independent_ones_do_not():
    times = {name: np.asarray(times_of(name, 0, 2_000)) for name in TIMES}
    pairs = {name: t.reshape(-1, 2) for name, t in times.items()}
    np.testing.assert_allclose(pairs["antithetic"].sum(1), 1, atol=1e-6)
    correlation = {name: np.corrcoef(t[:-2:2], t[2::2])[0, 1] for name, t in times.items()}
    # of 1,000 pairs that are independent: beyond 5 / sqrt(1000) once in 10^6
    assert abs(correlation["antithetic"]) < 0.16
    assert abs(correlation["independent"]) < 0.16
    assert abs(np.corrcoef(*pairs["independent"].T)[0, 1]) < 0.16


def test_oracle_radd_times(oracle):
    arrays, _ = oracle("radd", "corruption")
    for kind, scale in {"vdm": lambda u: u, "decoupled": lambda u: u / len(u)}.items():
        t = arrays[f"sampler_{kind}_t"]
        u = scale(arrays[f"sampler_{kind}_u"])
        ours = jax.jit(stratify, static_argnums=2)(u, np.arange(len(t)), len(t))
        np.testing.assert_allclose(ours, t, rtol=1e-5)


def test_oracle_mdlm_antithetic_times(oracle):
    arrays, _ = oracle("mdlm", "sample_t")
    u, sampling_eps = arrays["antithetic_u"], 1e-3
    t = jax.jit(stratify, static_argnums=2)(u / len(u), np.arange(len(u)), len(u))
    ours = (1 - sampling_eps) * np.asarray(t) + sampling_eps
    np.testing.assert_allclose(ours, arrays["antithetic_t"], rtol=1e-5)
