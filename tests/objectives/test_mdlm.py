"""MDLM's and MD4's bounds against exact enumeration: vocabulary 3, length 4, every mask, every x0.

Integrals over time are Gauss-Legendre sums, exact or nearly so.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import example_keys, step_key, stratified
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.objectives import OBJECTIVES, radd
from ddm_jax.objectives.masked import on_grid, time_weight
from ddm_jax.objectives.md4 import md4_at
from ddm_jax.objectives.mdlm import importance_noise, mdlm_at, mdlm_importance_at
from ddm_jax.objectives.signature import Noise
from tests.enumerable import exact_denoiser, wrong_denoiser
from tests.masking import (
    JOINT,
    LENGTH,
    NLL,
    TIMES,
    VOCAB,
    X0,
    XT,
    answers,
    bound_in_steps,
    even_mask_law,
    gauss,
    losses_at,
    slope_and_difference,
    smooth_network,
)

each_schedule = pytest.mark.parametrize("name", SCHEDULES)
DENOISERS = {"exact": lambda: exact_denoiser(JOINT), "wrong": lambda: wrong_denoiser(VOCAB, LENGTH)}


def process(name="log_linear", **options):
    return Absorbing(SCHEDULES[name].make(**options), mask_id=VOCAB)


def mean(of_each_sequence):
    return JOINT.reshape(-1) @ of_each_sequence


def over_time(loss_at, apply, process, low=0.0, nodes=TIMES):
    """E over t ~ U(low, 1) and masks, for every x0."""
    t, weight = gauss(low, 1, nodes)
    law = even_mask_law(process.schedule.one_minus_alpha(t))
    losses = (losses_at(loss_at, apply, t, process) * law).sum(-1)
    return weight @ losses / (1 - low)


def over_grid(loss_at, apply, process, steps):
    """E over t = i / T and masks, for every x0."""
    t = np.arange(1, steps + 1) / steps
    law = even_mask_law(process.schedule.one_minus_alpha(t))
    return (losses_at(loss_at, apply, t, process, steps=steps) * law).sum(-1).mean(0)


def over_mask_ratio(apply, low, high):
    """RADD's lambda-DCE, integrated over mask ratios from low to high."""
    lam, weight = gauss(low, high, 8)  # exact: a polynomial of degree 3
    return weight @ (losses_at(radd.lambda_dce_at, apply, lam, process()) * even_mask_law(lam)).sum(
        -1
    )


def test_exact_denoiser_attains_the_nll_of_every_sequence(float64):
    bound = over_time(mdlm_at, exact_denoiser(JOINT), process(eps=0.0))
    np.testing.assert_allclose(bound, NLL, rtol=1e-9)


@each_schedule
@pytest.mark.parametrize("denoiser", DENOISERS)
def test_no_schedule_changes_the_bound(name, denoiser, float64):
    """It is RADD's lambda-DCE between the mask ratios at which the schedule begins and ends."""
    apply, schedule = DENOISERS[denoiser](), SCHEDULES[name].make()
    ends = (float(schedule.one_minus_alpha(t)) for t in (0.0, 1.0))
    bound = over_time(mdlm_at, apply, process(name))
    np.testing.assert_allclose(bound, over_mask_ratio(apply, *ends), rtol=1e-7)


def test_equals_radd_t_dce_for_each_mask_and_time(float64):
    apply, t = wrong_denoiser(VOCAB, LENGTH), np.array([1e-3, 0.3, 1.0])
    ours, theirs = (losses_at(f, apply, t, process()) for f in (mdlm_at, radd.t_dce_at))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.mark.parametrize("name", ["log_linear", "linear", "cosine", "geometric"])
@pytest.mark.parametrize("steps", [1, 3])
def test_bound_in_steps_is_that_of_the_definitions(name, steps, float64):
    """sum_i KL(q(x_s | x_t, x0) || p(x_s | x_t)), enumerated in numpy."""
    apply = wrong_denoiser(VOCAB, LENGTH)
    alpha = np.asarray(SCHEDULES[name].make().alpha(np.arange(steps + 1) / steps))
    want = bound_in_steps(np.repeat(alpha[:, None], VOCAB, axis=1), answers(apply))
    np.testing.assert_allclose(over_grid(mdlm_at, apply, process(name), steps), want, rtol=1e-9)


def test_bound_in_steps_falls_to_the_continuous_one_as_one_over_the_steps(float64):
    """For the exact denoiser it stays above the entropy; twice the steps halve the distance.

    Not above the NLL of each sequence: the chain in few steps is another distribution.
    """
    apply, exact = exact_denoiser(JOINT), process(eps=0.0)
    gap = {n: mean(over_grid(mdlm_at, apply, exact, n) - NLL) for n in (1, 2, 8, 20, 40)}
    assert gap[1] > gap[2] > gap[8] > gap[20] > gap[40] > 0
    assert gap[20] / gap[40] == pytest.approx(2, rel=0.02)


@each_schedule
def test_importance_sampling_has_the_same_mean(name, float64):
    """Over u ~ U(0, 1), against t ~ U(1e-3, 1)."""
    apply = wrong_denoiser(VOCAB, LENGTH)
    u, weight = gauss(0, 1, TIMES)
    log_m = np.asarray(importance_noise(jnp.asarray(u), SCHEDULES[name].make()))
    losses = losses_at(mdlm_importance_at, apply, log_m, process(name))
    ours = weight @ (losses * even_mask_law(np.exp(log_m))).sum(-1)
    np.testing.assert_allclose(ours, over_time(mdlm_at, apply, process(name), 1e-3), rtol=1e-7)


@each_schedule
def test_importance_draws_are_even_in_the_weight(name):
    """log(1 - alpha) from its value at 1e-3 to that at 1, in float32 as in float64."""
    u = np.array([2.0**-33, 0.25, 0.5, 1 - 2.0**-24], np.float32)
    ours = importance_noise(u, SCHEDULES[name].make())
    assert ours.dtype == jnp.float32
    m_low, m_high = (FORMULA_ONE_MINUS_ALPHA[name](t) for t in (1e-3, 1.0))
    want = np.log(m_low) + u.astype(np.float64) * (np.log(m_high) - np.log(m_low))
    np.testing.assert_allclose(np.exp(ours), np.exp(want), rtol=5e-6)


FORMULA_ONE_MINUS_ALPHA = {
    "log_linear": lambda t: (1 - 1e-3) * t,
    "linear": lambda t: 1e-4 + (1 - 2e-4) * t,
    "cosine": lambda t: 1e-4 + (1 - 2e-4) * np.cos(np.pi / 2 * (1 - t)),
    "polynomial": lambda t: 1e-4 + (1 - 2e-4) * t**2,
    "mdlm_cosine": lambda t: (1 - 1e-3) * (1 - np.cos(np.pi / 2 * t)),
    "mdlm_cosine_squared": lambda t: (1 - 1e-3) * np.sin(np.pi / 2 * t) ** 2,
    "mdlm_linear": lambda t: -np.expm1(-10 * t),
    "geometric": lambda t: -np.expm1(-(1e-4 ** (1 - t)) * 20.0**t),
}


@each_schedule
def test_weight_in_steps_is_accurate_in_float32(name):
    steps = 1000
    t = on_grid((np.arange(steps, dtype=np.float32) + 0.5) / steps, steps)
    ours = time_weight(SCHEDULES[name].make(), t, steps)
    assert ours.dtype == jnp.float32
    m = FORMULA_ONE_MINUS_ALPHA[name](np.arange(steps + 1) / steps)
    np.testing.assert_allclose(ours, steps * np.diff(m) / m[1:], rtol=1e-6)


def test_grid_times_are_drawn_equally_often():
    u = stratified(step_key(0, 0), jnp.arange(300), 300)
    counts = np.bincount(np.round(np.asarray(on_grid(u, 3)) * 3).astype(int), minlength=4)
    assert counts[0] == 0
    assert (abs(counts[1:] - 100) <= 1).all()
    assert on_grid(jnp.float32(1 - 2.0**-24), 1000) == 1


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", ["linear", "cosine", "log_linear"])
def test_md4_adds_what_eps_leaves_at_both_ends(name, steps, float64):
    """n (1 - alpha(0)) log V and n alpha(1) log V."""
    apply, t = wrong_denoiser(VOCAB, LENGTH), np.array([1 / 3, 1.0])
    alpha = np.asarray(SCHEDULES[name].make().alpha(np.array([0.0, 1.0])))
    constant = LENGTH * (1 - alpha[0] + alpha[1]) * np.log(VOCAB)
    ours, plain = (losses_at(f, apply, t, process(name), steps=steps) for f in (md4_at, mdlm_at))
    np.testing.assert_allclose(ours, plain + constant, rtol=1e-11)


@pytest.mark.parametrize("name", ["linear", "cosine", "polynomial"])
def test_md4_is_a_bound_that_the_exact_denoiser_all_but_attains(name, float64):
    gap = mean(over_time(md4_at, exact_denoiser(JOINT), process(name)) - NLL)
    assert 0 < gap < 2e-4 * LENGTH * np.log(VOCAB)
    tight = over_time(md4_at, exact_denoiser(JOINT), process(name, eps=1e-7))
    np.testing.assert_allclose(tight, NLL, rtol=2e-6)


def draw(objective, apply, count, schedule="log_linear", x0=17, **options):
    """`count` losses of one sequence and, after it, a position of padding."""

    def padded_apply(params, tokens, sigma):
        assert bool((tokens[:, -1] == 0).all())
        out = apply(params, tokens[:, :-1], sigma)
        hidden = jnp.pad(out.hidden, ((0, 0), (0, 1), (0, 0)))
        return type(out)(hidden, out.kernel, out.bias, out.vocab_size)

    tokens = jnp.broadcast_to(np.append(X0[x0], 0), (count, LENGTH + 1))
    batch = {"tokens": tokens, "valid": jnp.broadcast_to(jnp.arange(5) < LENGTH, tokens.shape)}
    key, index = step_key(0, 5), jnp.arange(count)
    noise = Noise(stratified(key, index, count), example_keys(key, index))
    loss = OBJECTIVES[objective].loss
    return loss(padded_apply, {}, batch, noise, process(schedule), **options)


DRAWN = {
    "mdlm": ("mdlm", "log_linear", {}),
    "mdlm in steps": ("mdlm", "mdlm_cosine", {"steps": 5}),
    "mdlm by importance": ("mdlm", "geometric", {"importance": True}),
    "md4": ("md4", "cosine", {}),
    "md4 in steps": ("md4", "linear", {"steps": 5}),
}


@pytest.mark.parametrize("case", DRAWN)
def test_draws_have_the_enumerated_mean(case):
    """The mean of 40,000 lies within 5 standard errors of the exact one (wrong once in 10^6)."""
    objective, schedule, options = DRAWN[case]
    count, x0 = 40_000, 17
    loss_at = {"mdlm": mdlm_at, "md4": md4_at}[objective]
    with jax.enable_x64(True):
        apply = wrong_denoiser(VOCAB, LENGTH)
        if "steps" in options:
            exact = over_grid(loss_at, apply, process(schedule), options["steps"])[x0]
        else:
            low = 0.0 if objective == "md4" else 1e-3
            exact = over_time(loss_at, apply, process(schedule), low)[x0]
    out = draw(objective, wrong_denoiser(VOCAB, LENGTH), count, schedule, x0, **options)
    stderr = float(out.loss.std()) / np.sqrt(count)
    assert stderr < 0.02 * exact
    assert abs(float(out.loss.mean()) - exact) < 5 * stderr
    np.testing.assert_array_equal(out.bound, out.loss)


@pytest.mark.parametrize("case", DRAWN)
def test_network_is_told_sigma_bar_of_the_noise_that_it_sees(case):
    """The share of masks among 20,000 rows in ten groups of like sigma: 5 standard errors each."""
    objective, schedule, options = DRAWN[case]
    seen, apply = [], wrong_denoiser(VOCAB, LENGTH)

    def spy(params, tokens, sigma):
        seen.append((np.asarray(tokens == VOCAB).mean(-1), -np.expm1(-np.asarray(sigma))))
        return apply(params, tokens)

    draw(objective, spy, 20_000, schedule, **options)
    ((masked, told),) = seen
    for group in np.array_split(np.argsort(told), 10):
        variance = (told[group] * (1 - told[group])).mean() / (len(group) * LENGTH)
        assert abs(masked[group].mean() - told[group].mean()) < 5 * np.sqrt(variance)


GIVEN = {
    "mdlm": (mdlm_at, {}),
    "mdlm by importance": (mdlm_importance_at, {}),
    "md4 in steps": (md4_at, {"steps": 4}),
}


@pytest.mark.parametrize("case", GIVEN)
def test_gradient_is_the_slope_of_the_loss(case, float64):
    loss_at, options = GIVEN[case]
    apply, params = smooth_network()
    batch = {"tokens": jnp.asarray(X0[:4]), "valid": jnp.ones((4, LENGTH), bool)}
    xt = jnp.asarray(XT[:4, 9])
    t = jnp.array([0.25, 0.5, 0.75, 1.0])
    level = jnp.log(t - 1e-3) if loss_at is mdlm_importance_at else t

    def loss(params):
        return loss_at(apply, params, batch, xt, level, process("cosine"), **options).loss.mean()

    slope, difference = slope_and_difference(loss, params)
    assert abs(slope) > 0.1
    np.testing.assert_allclose(difference, slope, rtol=1e-7)
