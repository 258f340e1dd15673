"""SEDD's analytic sampler against the exactly computed law of its chain, vocabulary 3.

The scores are those of an enumerable distribution. One position alone has the right law in any
number of steps; several move without sight of each other, and the law is the joint distribution
only as the steps grow. Chi-squares reject the right law once in 10^6.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm

from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.models.network import Readout
from ddm_jax.samplers import SAMPLERS, SampleSpec
from ddm_jax.samplers.analytic import tweedie
from tests.enumerable import all_sequences, random_joint
from tests.samplers.test_ancestral import chi_square

VOCAB, COUNT = 3, 40_000
Q = np.ones((VOCAB, VOCAB)) / VOCAB - np.eye(VOCAB)


def noised(joint, alpha):
    """p_t over all sequences: float64[VOCAB] * length."""
    for _ in range(joint.ndim):  # each pass noises the first axis and puts it last
        joint = np.tensordot(joint, alpha * np.eye(VOCAB) + (1 - alpha) / VOCAB, axes=(0, 0))
    return joint


def scores(joint, alpha):
    """p_t(x with y at i) / p_t(x): float64[VOCAB^length, length, VOCAB]."""
    p_t, states = noised(joint, alpha), all_sequences(VOCAB, joint.ndim)
    table = np.zeros((*states.shape, VOCAB))
    for (n, x), i, y in itertools.product(enumerate(states), range(joint.ndim), range(VOCAB)):
        other = tuple(np.where(np.arange(joint.ndim) == i, y, x))
        table[n, i, y] = p_t[other] / p_t[tuple(x)]
    return table


def times(schedule, steps):
    """(alpha, sigma_bar) at t = 1, 1 - 1/steps, .., 0, clean at the end: float64[steps + 1]."""
    with jax.enable_x64(True):
        alpha = np.array(schedule.alpha(1 - np.arange(steps + 1) / steps))
    alpha[-1] = 1
    return alpha, -np.log(alpha)


def law_of_chain(joint, schedule, steps, fixed=None, prompt=None):
    """p(x) after `steps` steps from the uniform prior, by matrix exponentials: float64[V^L]."""
    states, length = all_sequences(VOCAB, joint.ndim), joint.ndim
    fixed = np.zeros(length, bool) if fixed is None else fixed
    starts = (~fixed | (states == prompt)).all(1)
    law = starts / starts.sum()
    alpha, sigma_bar = times(schedule, steps)
    for i in range(steps):
        d = sigma_bar[i] - sigma_bar[i + 1]
        earlier = scores(joint, alpha[i]) @ expm(-d * Q).T
        moves = np.maximum(earlier, 0) * expm(d * Q)[states]
        moves /= moves.sum(-1, keepdims=True)
        moves = np.where(fixed[:, None], np.eye(VOCAB)[states], moves)
        law = law @ moves[:, np.arange(length), states].prod(-1)
    return law


def network(joint, schedule, steps):
    """An `apply` with the scores at the times of `steps` steps, and junk for that of x_t."""
    alpha, sigma_bar = times(schedule, steps)
    table = np.log(np.stack([scores(joint, a) for a in alpha[:-1]]))
    states = all_sequences(VOCAB, joint.ndim)
    table += 50 * np.eye(VOCAB)[states]
    table, sigma_bar = jnp.asarray(table), jnp.asarray(sigma_bar[:-1])

    def apply(params, tokens, sigma):
        step = jnp.argmin(abs(sigma[:, None] - sigma_bar), axis=1)
        number = (tokens * VOCAB ** np.arange(joint.ndim)[::-1]).sum(-1)
        return Readout(table[step, number], jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)

    return apply


def sample(joint, schedule, steps, fixed=None, prompt=None):
    """(tokens, nfe) of the jitted sampler."""
    length = joint.ndim
    fixed = np.broadcast_to(np.zeros(length, bool) if fixed is None else fixed, (COUNT, length))
    prompt = np.broadcast_to(np.zeros(length, int) if prompt is None else prompt, fixed.shape)
    run = functools.partial(
        SAMPLERS["analytic"],
        network(joint, schedule, steps),
        process=Uniform(schedule, VOCAB),
        spec=SampleSpec(steps),
    )
    tokens, stats = jax.jit(run)({}, step_key(0, 0), jnp.asarray(prompt), jnp.asarray(fixed))
    return np.asarray(tokens), np.asarray(stats.nfe)


JOINT = random_joint(VOCAB, 3, seed=3)
NOISE = SCHEDULES["log_linear"](eps=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_samples_follow_the_law_of_the_chain(steps):
    tokens, nfe = sample(JOINT, NOISE, steps)
    statistic, limit = chi_square(tokens, law_of_chain(JOINT, NOISE, steps))
    assert statistic < limit
    np.testing.assert_array_equal(nfe, np.full(COUNT, steps))
    # the chi-square would notice one step more, and the joint distribution
    for law in (law_of_chain(JOINT, NOISE, steps + 1), JOINT.reshape(-1)):
        assert chi_square(tokens, law)[0] > limit


def test_geometric_noise_starts_at_scores_of_one_and_ends_clean():
    """At alpha(1) = 2e-9 scores differ by as little; alpha(0), 0.74 here, is 1 at the last step."""
    noise = SCHEDULES["geometric"](sigma_min=0.3)
    tokens, _ = sample(JOINT, noise, 3)
    statistic, limit = chi_square(tokens, law_of_chain(JOINT, noise, 3))
    assert statistic < limit


def test_fixed_positions_stay_and_the_rest_follows_the_chain():
    fixed, prompt = np.array([False, True, False]), np.array([0, 2, 0])
    tokens, _ = sample(JOINT, NOISE, 4, fixed, prompt)
    assert (tokens[:, 1] == 2).all()
    statistic, limit = chi_square(tokens, law_of_chain(JOINT, NOISE, 4, fixed, prompt))
    assert statistic < limit


@pytest.mark.parametrize("steps", [1, 4])
def test_law_of_a_lone_position_is_exact_in_any_number_of_steps(steps):
    """From the uniform prior, which at alpha(1) = 1e-6 is the law of x_1."""
    joint, noise = np.array([0.2, 0.7, 0.1]), SCHEDULES["log_linear"](eps=1e-6)
    np.testing.assert_allclose(law_of_chain(joint, noise, steps), joint, atol=3e-6)
    statistic, limit = chi_square(sample(joint, noise, steps)[0], joint)
    assert statistic < limit


def test_law_of_the_chain_tends_to_the_joint_as_one_over_the_steps():
    """Down to the distance of x_1 from its prior, which is nothing at alpha(1) = 1e-6."""
    noise = SCHEDULES["log_linear"](eps=1e-6)
    joint = random_joint(VOCAB, 2, seed=3)
    far = [
        abs(law_of_chain(joint, noise, n) - joint.reshape(-1)).sum() / 2 for n in (1, 16, 64, 128)
    ]
    assert far[0] > far[1] > far[2] > far[3]
    assert far[2] / far[3] == pytest.approx(2, rel=0.05)
    assert far[3] < 0.01


def test_law_of_a_step_equals_oracle(oracle):
    """Up to a factor: its weights of the analytic step and of the denoiser."""
    arrays, meta = oracle("sedd", "sampler_step_uniform")
    xt, tokens = arrays["x"], meta["config"]["tokens"]
    # the published geometric schedule keeps its ends in float32
    ends = {"sigma_min": float(np.float32(1e-4)), "sigma_max": float(np.float32(20))}
    schedules = {
        "loglinear": SCHEDULES["log_linear"](),
        "geometric": SCHEDULES["geometric"](**ends),
    }
    step = float(arrays["mid_step_size"])
    cases = [
        ("loglinear", step, "mid_loglinear_analytic_probs", True),
        ("loglinear", step, "mid_loglinear_analytic_probs", False),
        ("geometric", step, "mid_geometric_analytic_probs", False),
        ("loglinear", None, "denoiser_mid_loglinear_probs", True),
        ("loglinear", None, "denoiser_mid_loglinear_probs", False),
        ("geometric", None, "denoiser_mid_geometric_probs", False),
    ]
    for name, step, probs, double in cases:
        with jax.enable_x64(True):
            schedule, t = schedules[name], np.float64(arrays["mid_t"])[..., None]
            s = 0 if step is None else t - step
            clean = 1 if step is None else schedule.alpha(s)
            kept = schedule.alpha(t) / clean
            score = arrays[f"mid_{name}_score" + "__f64" * double]
            ours = np.asarray(tweedie(jnp.log(score), jnp.asarray(xt), kept, 1 - kept))
        want = arrays[probs + "__f64" * double]
        assert want.shape == (*xt.shape, tokens)
        want = np.maximum(want, 0)
        ours, want = (w / w.sum(-1, keepdims=True) for w in (ours, want))
        tolerance = 1e-6 if double else 1e-4
        np.testing.assert_allclose(ours, want, rtol=tolerance, atol=tolerance, err_msg=probs)
