"""Ancestral sampling of masks: when they are revealed, and what the oracles say of a step.

The law of its samples is in test_laws.py. Chi-squares reject the right law once in 10^6.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES, Schedule
from ddm_jax.models.readout import Readout
from ddm_jax.samplers import SAMPLERS
from ddm_jax.samplers.signature import SampleSpec
from tests.programs import RUNS_LONG

COUNT, LENGTH, MOST = 100_000, 4, 9
MADE = {name: row.make() for name, row in SCHEDULES.items()}


def process(schedule="log_linear", mask_id=MOST):
    return Absorbing(MADE[schedule], mask_id)


def schedule_at(number):
    """The one at this place in SCHEDULES, which may be traced."""

    def curve(name):
        return lambda t: jax.lax.switch(number, [getattr(x, name) for x in MADE.values()], t)

    names = [field.name for field in dataclasses.fields(Schedule)][2:]
    return Schedule("", (), **{name: curve(name) for name in names})


@functools.partial(jax.jit, compiler_options=RUNS_LONG)
def program(number, steps):
    schedule = schedule_at(number)

    def clock(params, tokens, sigma):
        """Answers with the number of the step whose time it is given, as a token."""
        step = jnp.round((1 - schedule.time(sigma)) * steps).astype(int)
        hidden = jnp.broadcast_to(1e9 * jax.nn.one_hot(step, MOST)[:, None], (*tokens.shape, MOST))
        return Readout(hidden, jnp.eye(MOST), jnp.zeros(MOST), MOST)

    empty = jnp.zeros((COUNT // LENGTH, LENGTH), jnp.int32)
    sample = SAMPLERS["ancestral"].sample
    noise, spec = Absorbing(schedule, MOST), SampleSpec(steps)
    return sample(clock, {}, step_key(0, 0), empty, empty > 0, noise, spec)[0]


def revealed(schedule, steps):
    """How many of COUNT positions are revealed at each step; none is left."""
    tokens = np.asarray(program(list(SCHEDULES).index(schedule), steps))
    counts = np.bincount(tokens.reshape(-1), minlength=steps)
    assert len(counts) == steps  # no mask
    return counts


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.slow
def test_positions_are_revealed_as_alpha_rises_and_the_network_knows_the_time(schedule):
    """P(revealed at the step from t to s) = (alpha_s - alpha_t) / (1 - alpha_1), and none is left.

    The last step takes what the schedule would leave masked at time 0, which is 10 of these masks
    where alpha(0) = 1 - 1e-4.
    """
    steps = MOST
    with jax.enable_x64(True):
        alpha = np.array(process(schedule).schedule.alpha(1 - np.arange(steps + 1) / steps))
    alpha[-1] = 1
    expected = COUNT * np.diff(alpha) / (1 - alpha[0])
    statistic = ((revealed(schedule, steps) - expected) ** 2 / np.maximum(expected, 1)).sum()
    assert statistic < chi2.isf(1e-6, df=steps - 1)


def test_reveal_probabilities_equal_oracle(oracle):
    """RADD's Tweedie update rates, on its grid of times from 1 to 1e-5."""
    arrays, _ = oracle("radd", "update_rate")
    for steps, (name, schedule) in itertools.product(
        (4, 32), {"loglinear": "log_linear", "geometric": "geometric"}.items()
    ):
        t = arrays[f"timesteps_{steps}__f64"]
        reveal = jax.jit(process(schedule).reveal)
        with jax.enable_x64(True):
            chance = reveal(t[1:], t[:-1])
        want = arrays[f"{name}_tweedie_{steps}__f64"]
        np.testing.assert_allclose(chance, want, rtol=1e-6, err_msg=f"{name} {steps}")
        chance = reveal(np.float32(t[1:]), np.float32(t[:-1]))
        np.testing.assert_allclose(chance, want, rtol=1e-4, atol=1e-4, err_msg=f"{name} {steps}")


def test_positions_are_revealed_at_the_rates_of_the_oracle(oracle):
    """100,000 positions in RADD's 4 steps, the last of which reveals all; wrong once in 10^6.

    Its times end at 1e-5, ours at 0: the probabilities differ by less than 1e-4.
    """
    arrays, _ = oracle("radd", "update_rate")
    for name, schedule in (("loglinear", "log_linear"), ("geometric", "geometric")):
        rates = np.append(arrays[f"{name}_tweedie_4__f64"][:-1], 1)
        expected = COUNT * rates * np.cumprod(np.append(1, 1 - rates[:-1]))
        statistic = ((revealed(schedule, 4) - expected) ** 2 / expected).sum()
        assert statistic < chi2.isf(1e-6, df=3)


def test_law_of_a_step_equals_oracle(oracle):
    """MDLM's weights p(x0) (m_t - m_s) and m_s for the mask, m = 1 - alpha, over their sum m_t."""
    arrays, _ = oracle("mdlm", "sampler_step")
    mask_id = arrays["mid_subs_time_score"].shape[-1] - 1
    masked = arrays["x"] == mask_id
    assert masked.any()
    for case, suffix, tolerance in (("mid", "__f64", 1e-6), ("first", "", 1e-4)):
        t, dt = arrays[f"{case}_t"][:, :, None], arrays[f"{case}_dt"]
        weights = arrays[f"{case}_subs_time_ddpm_probs{suffix}"]
        want = (weights / weights.sum(-1, keepdims=True))[masked]
        # ddpm_cache has the same p(x0), times dt
        p0 = arrays[f"{case}_subs_time_ddpm_cache_probs{suffix}"][..., :mask_id] / dt
        with jax.enable_x64(True):
            t = t.astype(np.float64)
            absorbing = process(mask_id=mask_id)
            reveal, stay = absorbing.reveal(t - dt, t), absorbing.stay_masked(t - dt, t)
            ours = np.concatenate([reveal * p0, stay + 0 * p0[..., :1]], -1)[masked]
        np.testing.assert_allclose(ours, want, rtol=tolerance, atol=tolerance, err_msg=case)
