"""GenMD4 against bounds enumerated in numpy: vocabulary 3, length 4, every mask, every x0."""

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import example_keys, step_key, stratified
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.vector_absorbing import VectorAbsorbing
from ddm_jax.models import readout as readout_module
from ddm_jax.models.readout import Readout
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.objectives.genmd4 import diffusion_at, genmd4_at, init
from ddm_jax.objectives.mdlm import mdlm_at
from ddm_jax.objectives.signature import LossOutput, Noise
from tests.enumerable import wrong_denoiser
from tests.masking import (
    JOINT,
    LENGTH,
    MASKS,
    TIMES,
    VOCAB,
    X0,
    XT,
    answers,
    bound_in_steps,
    gauss,
    losses_at,
    mask_law,
    slope_and_difference,
    smooth_network,
)

PROCESS = Absorbing(SCHEDULES["linear"].make(), mask_id=VOCAB)
W, EPS, FIRST = np.array([0.6, 1.0, 2.5]), 1e-4, 1e-3


def learnt(w):
    """params whose schedule has these w."""
    return {"objective": {"raw_power": jnp.log(jnp.expm1(jnp.asarray(w)))}}


def masked_chance(w, t):
    """1 - alpha of each token of each x0: float64[..., 81, 4] from t[...]."""
    return (1 - EPS) * np.asarray(t)[..., None, None] ** w[X0]


def constants(w):
    """Reconstruction at t = 1e-3, by a guess of v in proportion to t^w_v, and prior; each x0."""
    m = masked_chance(w, FIRST)
    guess = FIRST**w / (FIRST**w).sum()
    return -(m * np.log(guess)[X0]).sum(-1) + LENGTH * EPS * np.log(VOCAB)


def diffusion(apply, w, times):
    """The diffusion term of every x0 under every mask: float64[times, 81, 16]."""

    def loss_at(apply, params, batch, xt, t, process):
        loss, masked = diffusion_at(
            apply, params, batch, xt, t, VectorAbsorbing(process, jnp.asarray(w))
        )
        np.testing.assert_array_equal(masked, xt == VOCAB)
        return LossOutput(loss, loss)

    return losses_at(loss_at, apply, times, PROCESS)


def over_time(apply, w):
    """E over t ~ U(1e-3, 1) and masks of the diffusion term, for every x0; even in log t."""
    log_t, weight = gauss(np.log(FIRST), 0, TIMES)
    t = np.exp(log_t)
    expected = (diffusion(apply, w, t) * mask_law(masked_chance(w, t))).sum(-1)
    return (weight * t) @ expected / (1 - FIRST)


def in_steps(steps, w, log_p):
    """The bound of T steps from t = 1 to 1e-3, even in log t."""
    t = FIRST ** (1 - np.arange(steps + 1) / steps)
    return bound_in_steps(1 - (1 - EPS) * t[:, None] ** w, log_p)


def test_bound_is_the_limit_of_the_definitions_for_any_denoiser(float64):
    """sum KL(q(x_s | x_t, x0) || p(x_s | x_t)) in 75, 150 and 300 steps, extrapolated."""
    apply = wrong_denoiser(VOCAB, LENGTH)
    few, more, most = (in_steps(n, W, answers(apply)) for n in (75, 150, 300))
    ours = over_time(apply, W)
    assert abs(most / ours - 1).max() > 1e-2
    np.testing.assert_allclose(ours, (8 * most - 6 * more + few) / 3, rtol=1e-4)


def test_exact_denoiser_attains_what_the_data_have_left_at_the_first_time(float64):
    """KL(q(x_t1 | x0) || q(x_t1)) - KL(q(x_1 | x0) || q(x_1)), for every x0.

    That is what the exact reversal of the process costs. The exact denoiser knows the time: which
    tokens are masked says something of them.
    """

    def q(t):
        """q(x_t | x0) of the 16 masks of each x0 and q(x_t), both float64[81, 16]."""
        given = mask_law(masked_chance(W, t))
        fits = ((XT[:, :, None] == VOCAB) | (XT[:, :, None] == X0)).all(-1)  # [81, 16, x0']
        of_others = mask_law(masked_chance(W, t))  # the same mask has another chance for x0'
        weight = fits * JOINT.reshape(-1) * of_others.T[None]
        return given, weight

    def kl(t):
        given, weight = q(t)
        return (given * (np.log(given) - np.log(weight.sum(-1)))).sum(-1)

    def exact(t):
        """p(x0_i = v | x_t, t) for every x0 and mask: float64[81, 16, 4, V]."""
        _, weight = q(t)
        posterior = np.einsum("xms,slv->xmlv", weight, np.eye(VOCAB)[X0])
        return posterior / weight.sum(-1)[..., None, None]

    times = np.exp(gauss(np.log(FIRST), 0, TIMES)[0])
    log_p = np.log(np.maximum([exact(t) for t in times], 1e-300)).reshape(-1, LENGTH, VOCAB)

    def apply(params, tokens, sigma):
        return Readout(jnp.asarray(log_p), jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)

    np.testing.assert_allclose(over_time(apply, W), kl(FIRST) - kl(1.0), rtol=1e-6)


def test_equal_powers_give_the_polynomial_schedule(float64):
    """For each mask and time: MDLM's loss with alpha = 1 - t^w, whose weight is w / t."""
    apply, t = wrong_denoiser(VOCAB, LENGTH), np.array([1e-3, 0.3, 1.0])
    for k in (1.0, 2.5):
        process = Absorbing(SCHEDULES["polynomial"].make(k=k, eps=0.0), mask_id=VOCAB)
        want = losses_at(mdlm_at, apply, t, process) * (1 - FIRST)
        ours = diffusion(apply, np.full(VOCAB, k), t)
        np.testing.assert_allclose(ours, want, rtol=1e-7, atol=1e-9)


def test_gradient_estimate_has_the_exact_mean(float64):
    """Over every pair of masks; against finite differences of the enumerated bound, at two times.

    The bound at one time is numpy's: w / t times KL rates, under masks whose law depends on w.
    """
    apply = wrong_denoiser(VOCAB, LENGTH)
    log_p, x0 = answers(apply), 17
    p, ce = np.exp(log_p[x0]), -log_p[x0][:, np.arange(LENGTH), X0[x0]]  # [16, 4, V], [16, 4]
    pairs = np.array([(a, b) for a in range(len(MASKS)) for b in range(len(MASKS))])
    x1, x2 = (jnp.asarray(XT[x0][pairs[:, i]]) for i in (0, 1))
    tokens = jnp.broadcast_to(X0[x0], x1.shape)
    batch = {"tokens": tokens, "valid": jnp.ones(tokens.shape, bool)}

    def exact(raw, t):
        w = np.log1p(np.exp(raw))
        rate = w[X0[x0]] * (ce - 1) + p @ w
        diffusion = (1 - FIRST) / t * np.where(MASKS, rate, 0).sum(-1)
        return mask_law(masked_chance(w, t))[x0] @ diffusion + constants(w)[x0]

    raw, step = np.asarray(learnt(W)["objective"]["raw_power"]), 1e-6
    for t in (0.2, 0.9):
        law = mask_law(masked_chance(W, t))[x0]
        weight = law[pairs[:, 0]] * law[pairs[:, 1]]
        at = jnp.full(len(pairs), t)

        def estimate(raw, weight=weight, at=at):
            params = {"objective": {"raw_power": raw}}
            out = genmd4_at(apply, params, batch, x1, x2, at, PROCESS)
            return weight @ out.loss, weight @ out.bound

        (value, bound), pull = jax.vjp(estimate, jnp.asarray(raw))
        np.testing.assert_allclose([value, bound], exact(raw, t), rtol=1e-9)
        slopes = np.array([exact(raw + d, t) - exact(raw - d, t) for d in step * np.eye(VOCAB)])
        slopes /= 2 * step
        np.testing.assert_allclose(pull((1.0, 0.0))[0], slopes, rtol=1e-6)
        # the law of the masks matters: without its gradient the result is another
        assert abs(pull((0.0, 1.0))[0] / slopes - 1).max() > 0.05


def test_draws_have_the_enumerated_mean_and_gradient():
    """40,000 draws of one sequence with padding: 5 standard errors each (wrong once in 10^6).

    The gradient along one direction of log-powers, against the enumerated bound's.
    """
    count, x0 = 40_000, 17
    with jax.enable_x64(True):
        table = wrong_denoiser(VOCAB, LENGTH)

        def exact(w):
            return (over_time(table, w) + constants(w))[x0]

        raw = np.log(np.expm1(W))
        shifted = [np.log1p(np.exp(raw + h * np.array([1, -1, 1]))) for h in (1e-4, -1e-4)]
        slope = (exact(shifted[0]) - exact(shifted[1])) / 2e-4
        mean = exact(W)
    table = wrong_denoiser(VOCAB, LENGTH)

    def apply(params, tokens, sigma):
        out = table(params, tokens[:, :-1])
        return Readout(jnp.pad(out.hidden, ((0, 0), (0, 1), (0, 0))), out.kernel, out.bias, VOCAB)

    tokens = jnp.broadcast_to(np.append(X0[x0], 0), (count, LENGTH + 1))
    batch = {"tokens": tokens, "valid": jnp.broadcast_to(jnp.arange(5) < LENGTH, tokens.shape)}
    key, index = step_key(0, 5), jnp.arange(count)
    noise = Noise(stratified(key, index, count), example_keys(key, index))

    def losses(h):
        params = {
            "objective": {"raw_power": jnp.asarray(raw, jnp.float32) + h * jnp.array([1, -1, 1])}
        }
        out = OBJECTIVES["genmd4"].loss(apply, params, batch, noise, PROCESS)
        return out.loss, out

    _, slopes, out = jax.jvp(losses, (0.0,), (1.0,), has_aux=True)
    np.testing.assert_allclose(out.loss, out.bound, rtol=1e-6)
    for found, want in ((out.bound, mean), (slopes, slope)):
        stderr = float(found.std()) / np.sqrt(count)
        assert abs(float(found.mean()) - want) < 5 * stderr
        assert 5 * stderr < 0.7 * abs(want)
    np.testing.assert_allclose(out.metrics["power_min"], np.full(count, W.min()), rtol=1e-5)
    np.testing.assert_allclose(out.metrics["power_max"], np.full(count, W.max()), rtol=1e-5)
    assert 0 < out.metrics["masked"].mean() < 1


def setup_smooth(seed=1):
    apply, params = smooth_network()
    xs = [jnp.asarray(XT[:4, i]) for i in (9, 5)]
    batch = {"tokens": jnp.asarray(X0[:4]), "valid": jnp.ones((4, LENGTH), bool)}
    return apply, params, batch, xs, jnp.array([0.25, 0.5, 0.75, 1.0])


def test_gradient_of_the_network_is_the_slope_of_the_bound(float64):
    apply, params, batch, (x1, x2), t = setup_smooth()

    def loss(params):
        given = learnt(W)
        return genmd4_at(
            lambda _, *a: apply(params, *a), given, batch, x1, x2, t, PROCESS
        ).loss.mean()

    slope, difference = slope_and_difference(loss, params)
    assert abs(slope) > 0.1
    np.testing.assert_allclose(difference, slope, rtol=1e-7)


def test_reading_in_chunks_changes_nothing(float64, monkeypatch):
    """Also where the logits of all positions would not fit: same loss, same gradients."""
    apply, params, batch, (x1, x2), t = setup_smooth()

    def loss(both):
        def told(_, *a):
            return apply(both["network"], *a)

        return genmd4_at(told, both, batch, x1, x2, t, PROCESS).loss.sum()

    both = {"network": params} | learnt(W)
    whole = jax.jit(jax.value_and_grad(loss))(both)
    monkeypatch.setattr(readout_module, "LOGIT_BYTES", 5 * VOCAB * 4)
    chunked = jax.jit(jax.value_and_grad(lambda both: loss(both)))(both)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), chunked, whole)


def test_gradient_is_finite_at_both_ends_of_time():
    """Everything clean and everything masked at t = 1e-3 and t = 1, in float32."""
    apply = wrong_denoiser(VOCAB, LENGTH)
    x0 = jnp.asarray(X0[:4])
    batch = {"tokens": x0, "valid": jnp.ones((4, LENGTH), bool)}
    x1, x2 = (jnp.stack([x0[0], x0[1], x0[2] * 0 + 3, x0[3]]), jnp.full((4, LENGTH), VOCAB))
    t = jnp.array([1e-3, 1.0, 1.0, 1e-3])

    def loss(raw):
        params = {"objective": {"raw_power": raw}}
        return genmd4_at(apply, params, batch, x1, x2, t, PROCESS).loss.sum()

    value, grad = jax.jit(jax.value_and_grad(loss))(
        init(jax.random.key(0), PROCESS, 3.0)["raw_power"]
    )
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
