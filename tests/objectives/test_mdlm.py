"""MDLM's and MD4's bounds against exact enumeration: vocabulary 3, length 4, every mask, every x0.

Integrals over time are Gauss-Legendre sums, exact or nearly so.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.objectives import radd
from ddm_jax.objectives.masked import on_grid, time_weight
from ddm_jax.objectives.md4 import md4_at
from ddm_jax.objectives.mdlm import importance_noise, mdlm_at, mdlm_importance_at
from tests.batch import batch_of, noise_of
from tests.masking import (
    JOINT,
    LENGTH,
    NLL,
    ONE_MINUS_ALPHA,
    TIMES,
    VOCAB,
    X0,
    XT,
    answers,
    bound_in_steps,
    cross_entropies,
    even_mask_law,
    gauss,
    losses_at,
    slope_and_difference,
    smooth_network,
)
from tests.visible import exact_table, wrong_table

each_schedule = pytest.mark.parametrize("name", SCHEDULES)
EXACT, WRONG = answers(exact_table(JOINT)), answers(wrong_table(VOCAB, LENGTH))


def process(name="log_linear", **options):
    return Absorbing(SCHEDULES[name].make(**options), mask_id=VOCAB)


def mean(of_each_sequence):
    return JOINT.reshape(-1) @ of_each_sequence


def mask_chance(name, t, eps=None):
    """1 - alpha(t); eps in place of its 1e-4."""
    m = ONE_MINUS_ALPHA[name](t)
    return m if eps is None else eps + (1 - 2 * eps) * (m - 1e-4) / (1 - 2e-4)


def over_time(loss_at, log_p, name, low=0.0, **options):
    """E over t ~ U(low, 1) and masks, for every x0."""
    t, weight = gauss(low, 1, TIMES)
    law = even_mask_law(mask_chance(name, t, **options))
    losses = (losses_at(loss_at, log_p, t, process(name, **options)) * law).sum(-1)
    return weight @ losses / (1 - low)


def over_grid(loss_at, log_p, name, steps, chance=ONE_MINUS_ALPHA, **options):
    """E over t = i / T and masks, for every x0."""
    t = np.arange(1, steps + 1) / steps
    losses = losses_at(loss_at, log_p, t, process(name, **options), steps=steps)
    return (losses * even_mask_law(chance[name](t))).sum(-1).mean(0)


def over_mask_ratio(log_p, low, high):
    """RADD's lambda-DCE, integrated over mask ratios from low to high."""
    lam, weight = gauss(low, high, 8)  # exact: a polynomial of degree 3
    return (weight / lam) @ (cross_entropies(log_p).sum(-1) * even_mask_law(lam)).sum(-1)


@each_schedule
@pytest.mark.parametrize("log_p", [EXACT, WRONG], ids=["exact", "wrong"])
def test_no_schedule_changes_the_bound(name, log_p, float64):
    """It is RADD's lambda-DCE between the mask ratios at which the schedule begins and ends."""
    bound = over_time(mdlm_at, log_p, name)
    ends = map(ONE_MINUS_ALPHA[name], (0, 1))
    np.testing.assert_allclose(bound, over_mask_ratio(log_p, *ends), rtol=1e-7)


def test_equals_radd_t_dce_for_each_mask_and_time(float64):
    t = np.array([1e-3, 0.3, 1.0])
    ours, theirs = (losses_at(f, WRONG, t, process()) for f in (mdlm_at, radd.t_dce_at))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("name", ["log_linear", "linear", "cosine", "geometric"])
@pytest.mark.parametrize("steps", [1, 3])
def test_bound_in_steps_is_that_of_the_definitions(name, steps, float64):
    """sum_i KL(q(x_s | x_t, x0) || p(x_s | x_t)), enumerated in numpy."""
    alpha = 1 - ONE_MINUS_ALPHA[name](np.arange(steps + 1) / steps)
    want = bound_in_steps(np.repeat(alpha[:, None], VOCAB, axis=1), WRONG)
    np.testing.assert_allclose(over_grid(mdlm_at, WRONG, name, steps), want, rtol=1e-9)


def test_bound_in_steps_falls_to_the_continuous_one_as_one_over_the_steps(float64):
    """For the exact denoiser it stays above the entropy; twice the steps halve the distance.

    Not above the NLL of each sequence: the chain in few steps is another distribution.
    """
    no_eps = {"chance": {"log_linear": lambda t: t}, "eps": 0.0}
    gap = {
        steps: mean(over_grid(mdlm_at, EXACT, "log_linear", steps, **no_eps) - NLL)
        for steps in (1, 2, 8, 20, 40)
    }
    assert gap[1] > gap[2] > gap[8] > gap[20] > gap[40] > 0
    assert gap[20] / gap[40] == pytest.approx(2, rel=0.02)


@each_schedule
def test_importance_sampling_has_the_same_mean(name, float64):
    """Over u ~ U(0, 1), against t ~ U(1e-3, 1)."""
    u, weight = gauss(0, 1, TIMES)
    log_m = np.asarray(noise_by_importance(name)(u))
    losses = losses_at(mdlm_importance_at, WRONG, log_m, process(name))
    ours = weight @ (losses * even_mask_law(np.exp(log_m))).sum(-1)
    np.testing.assert_allclose(ours, over_time(mdlm_at, WRONG, name, 1e-3), rtol=1e-7)


def noise_by_importance(name):
    return jax.jit(lambda u: importance_noise(u, SCHEDULES[name].make()))


@each_schedule
def test_importance_draws_are_even_in_the_weight(name):
    """log(1 - alpha) from its value at 1e-3 to that at 1, in float32 as in float64."""
    u = np.array([2.0**-33, 0.25, 0.5, 1 - 2.0**-24], np.float32)
    ours = noise_by_importance(name)(u)
    assert ours.dtype == jnp.float32
    m_low, m_high = (ONE_MINUS_ALPHA[name](t) for t in (1e-3, 1.0))
    want = np.log(m_low) + u.astype(np.float64) * (np.log(m_high) - np.log(m_low))
    np.testing.assert_allclose(np.exp(ours), np.exp(want), rtol=5e-6)


@each_schedule
def test_weight_in_steps_is_accurate_in_float32(name):
    steps = 1000
    t = on_grid((np.arange(steps, dtype=np.float32) + 0.5) / steps, steps)
    ours = time_weight(SCHEDULES[name].make(), t, steps)
    assert ours.dtype == jnp.float32
    m = ONE_MINUS_ALPHA[name](np.arange(steps + 1) / steps)
    np.testing.assert_allclose(ours, steps * np.diff(m) / m[1:], rtol=1e-6)


def test_grid_times_are_drawn_equally_often():
    counts = np.bincount(np.round(np.asarray(on_grid(noise_of(300).u, 3)) * 3).astype(int))
    assert counts[0] == 0
    assert (abs(counts[1:] - 100) <= 1).all()
    assert on_grid(np.float32(1 - 2.0**-24), 1000) == 1


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", ["linear", "cosine", "log_linear"])
def test_md4_adds_what_eps_leaves_at_both_ends(name, steps, float64):
    """n (1 - alpha(0)) log V and n alpha(1) log V."""
    t = np.array([1 / 3, 1.0])
    first, last = map(ONE_MINUS_ALPHA[name], (0, 1))
    constant = LENGTH * (first + 1 - last) * np.log(VOCAB)
    ours, plain = (losses_at(f, WRONG, t, process(name), steps=steps) for f in (md4_at, mdlm_at))
    np.testing.assert_allclose(ours, plain + constant, rtol=1e-11)


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial"])
def test_md4_is_a_bound_that_the_exact_denoiser_all_but_attains(name, float64):
    gap = mean(over_time(md4_at, EXACT, name) - NLL)
    assert 0 < gap < 2e-4 * LENGTH * np.log(VOCAB)
    np.testing.assert_allclose(over_time(md4_at, EXACT, name, eps=1e-7), NLL, rtol=2e-6)


GIVEN = {
    "mdlm": (mdlm_at, {}),
    "mdlm by importance": (mdlm_importance_at, {}),
    "md4 in steps": (md4_at, {"steps": 4}),
}


@pytest.mark.parametrize("case", GIVEN)
def test_gradient_is_the_slope_of_the_loss(case, float64):
    loss_at, options = GIVEN[case]
    apply, params = smooth_network()
    t = np.array([0.25, 0.5, 0.75, 1.0])
    level = np.log(t - 1e-3) if loss_at is mdlm_importance_at else t

    def loss(params):
        given = batch_of(X0[:4]), jnp.asarray(XT[:4, 9]), jnp.asarray(level), process("cosine")
        return loss_at(apply, params, *given, **options).loss.mean()

    slope, difference = slope_and_difference(loss, params)
    assert abs(slope) > 0.1
    np.testing.assert_allclose(difference, slope, rtol=1e-7)
