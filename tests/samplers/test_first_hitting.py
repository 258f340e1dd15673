"""First-hitting sampling: the times of independent positions; test_laws.py has the law of samples.

In the limit of many steps every position has a clock of its own: 1 - alpha at its time, relative to
that at t = 1, is uniform. Chi-squares reject the right law once in 10^6.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.first_hitting import first_hitting, hitting_times
from ddm_jax.samplers.signature import SampleSpec
from tests.laws import chi_square

LENGTH = 3


def sampler(apply, schedule, mask_id):
    process = Absorbing(SCHEDULES[schedule].make(), mask_id)
    return jax.jit(functools.partial(first_hitting, apply, {}, process=process, spec=SampleSpec(1)))


BINS = 4


def clock(schedule):
    """A network that answers with the quarter of its range in which 1 - alpha is at its time."""

    def apply(params, tokens, sigma, read=None):
        share = -jnp.expm1(-sigma) / SCHEDULES[schedule].make().one_minus_alpha(1.0)
        quarter = jnp.minimum(share * BINS, BINS - 1).astype(int)
        shape = tokens.shape if read is None else read.shape
        hidden = jnp.broadcast_to(1e9 * jax.nn.one_hot(quarter, BINS)[:, None], (*shape, BINS))
        return Readout(hidden, jnp.eye(BINS), jnp.zeros(BINS), BINS)

    return apply


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["linear", "geometric"])
def test_every_position_has_its_own_clock(schedule):
    """All 64 triples of quarters are as likely; of the two that a fixed position leaves, all 16."""
    fixed = np.zeros((50_000, LENGTH), bool)
    fixed[::2, 1] = True
    run = sampler(clock(schedule), schedule, mask_id=BINS)
    tokens, _ = run(step_key(0, 0), jnp.full(fixed.shape, 2, jnp.int32), jnp.asarray(fixed))
    tokens = np.asarray(tokens)
    statistic, limit = chi_square(tokens[1::2], np.full(BINS**LENGTH, BINS**-LENGTH))
    assert statistic < limit
    assert (tokens[::2, 1] == 2).all()
    statistic, limit = chi_square(tokens[::2, [0, 2]], np.full(BINS**2, BINS**-2))
    assert statistic < limit


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_times_are_those_of_the_formula(schedule):
    """In float64, also of the first events of a thousand, which come close to t = 1."""
    length, masks = 1000, np.array([1000, 3, 0], np.int32)
    u = np.random.default_rng(0).random((3, length))
    u[:2, 0] = 1e-6, 1 - 1e-6
    u = np.float64(np.float32(u))
    process = Absorbing(SCHEDULES[schedule].make(), 0)
    times = np.asarray(jax.jit(lambda *x: hitting_times(*x, process))(np.float32(u), masks))
    assert times.dtype == np.float32
    assert ((times >= 0) & (times <= 1)).all()
    with jax.enable_x64(True):
        ends = np.repeat([[0.0], [1.0]], length, axis=1)
        at = jax.jit(process.schedule.one_minus_alpha)
        clean, full, *want = np.asarray(at(np.append(ends, times, axis=0)))
    left = masks[:, None] - np.arange(length)
    here = left > 0
    noise = full * np.cumprod(np.where(here, (1 - u) ** (1 / np.maximum(left, 1)), 1), axis=1)
    expected = np.maximum(noise, clean)[here]
    np.testing.assert_allclose(np.array(want)[here], expected, rtol=2e-5, atol=1e-9)
