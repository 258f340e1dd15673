"""Ancestral sampling against the exactly computed law of its Markov chain, vocabulary 3, length 3.

With N steps several positions may be revealed at once, each without sight of the others: the law of
the chain is the joint distribution only as N grows. Chi-squares reject the right law once in 10^6.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2, ncx2

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.models.readout import Readout
from ddm_jax.samplers import SAMPLERS
from ddm_jax.samplers.signature import SampleSpec
from tests.enumerable import all_sequences, exact_denoiser, random_joint
from tests.laws import absorbing_law, chi_square

VOCAB, LENGTH, COUNT = 3, 3, 40_000
JOINT = random_joint(VOCAB, LENGTH, seed=3)
STATES = all_sequences(VOCAB + 1, LENGTH)  # the mask is token VOCAB


def process(schedule="log_linear", mask_id=VOCAB):
    return Absorbing(SCHEDULES[schedule].make(), mask_id)


def sample(apply, steps, prompt, fixed, schedule="log_linear", mask_id=VOCAB, seed=0):
    """(tokens, nfe) of the jitted sampler."""
    run = functools.partial(
        SAMPLERS["ancestral"].sample,
        apply,
        process=process(schedule, mask_id),
        spec=SampleSpec(steps),
    )
    tokens, stats = jax.jit(run)({}, step_key(seed, 0), jnp.asarray(prompt), jnp.asarray(fixed))
    return np.asarray(tokens), np.asarray(stats.nfe)


def sample_joint(steps, count=COUNT):
    empty = np.zeros((count, LENGTH), np.int32)
    return sample(exact_denoiser(JOINT), steps, empty, np.zeros(empty.shape, bool))[0]


def law_of_chain(steps, start):
    """p(x) after `steps` steps from one state, under log-linear noise: float64[V^L]."""
    return absorbing_law(JOINT, steps, start)


MASKS = [VOCAB] * LENGTH


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_samples_follow_the_law_of_the_chain(steps):
    statistic, limit = chi_square(sample_joint(steps), law_of_chain(steps, MASKS))
    assert statistic < limit


def test_the_chi_square_tells_the_number_of_steps():
    """A chain of 7 steps is not taken for one of 5, nor for the joint distribution."""
    tokens = sample_joint(7)
    for law in (law_of_chain(5, MASKS), JOINT.reshape(-1)):
        statistic, limit = chi_square(tokens, law)
        assert statistic > limit


def test_law_of_the_chain_tends_to_the_joint_as_one_over_the_steps():
    far = [abs(law_of_chain(n, MASKS) - JOINT.reshape(-1)).sum() / 2 for n in (1, 8, 64, 128)]
    assert far[0] > far[1] > far[2] > far[3]
    assert far[2] / far[3] == pytest.approx(2, rel=0.03)


def test_many_steps_sample_the_joint():
    """The limit allows for the bias of 256 steps, which moves the mean of the statistic by 12."""
    steps, count = 256, 20_000
    bias = law_of_chain(steps, MASKS) - JOINT.reshape(-1)
    moved = count * (bias**2 / JOINT.reshape(-1)).sum()
    assert moved < 13
    statistic, _ = chi_square(sample_joint(steps, count), JOINT.reshape(-1))
    assert statistic < ncx2.isf(1e-6, df=VOCAB**LENGTH - 1, nc=moved)


@pytest.mark.parametrize("position", range(LENGTH))
def test_fixed_positions_stay_and_the_rest_follows_given_them(position):
    """Every token at `position`, at once: each is a chain of its own from a state with fewer masks.

    What the prompt says elsewhere is ignored.
    """
    steps = 4
    given = np.arange(COUNT * VOCAB) % VOCAB
    prompt = np.full((len(given), LENGTH), 1, np.int32)
    prompt[:, position] = given
    fixed = np.broadcast_to(np.arange(LENGTH) == position, prompt.shape)
    tokens, _ = sample(exact_denoiser(JOINT), steps, prompt, fixed)
    np.testing.assert_array_equal(tokens[:, position], given)
    for token in range(VOCAB):
        start = [token if i == position else VOCAB for i in range(LENGTH)]
        statistic, limit = chi_square(tokens[given == token], law_of_chain(steps, start))
        assert statistic < limit


def test_last_free_position_follows_the_true_conditional():
    """With one mask left there is no error of several reveals at once, even in one step."""
    fixed = np.broadcast_to([True, False, True], (COUNT, LENGTH))
    prompt = np.broadcast_to(np.array([2, 0, 1], np.int32), (COUNT, LENGTH))
    tokens, _ = sample(exact_denoiser(JOINT), 1, prompt, fixed)
    law = np.zeros_like(JOINT)
    law[2, :, 1] = JOINT[2, :, 1] / JOINT[2, :, 1].sum()
    statistic, limit = chi_square(tokens, law.reshape(-1))
    assert statistic < limit


def test_prompt_that_is_fixed_everywhere_comes_back():
    prompt = all_sequences(VOCAB, LENGTH)
    tokens, _ = sample(exact_denoiser(JOINT), 5, prompt, np.ones(prompt.shape, bool))
    np.testing.assert_array_equal(tokens, prompt)


def clock(schedule, steps):
    """A network that answers with the number of the step whose time it is given, as a token."""

    def apply(params, tokens, sigma):
        step = jnp.round((1 - process(schedule).schedule.time(sigma)) * steps)
        hidden = (
            jax.nn.one_hot(step.astype(int), steps)[:, None] * jnp.ones((*tokens.shape, 1)) * 1e9
        )
        return Readout(hidden, jnp.eye(steps), jnp.zeros(steps), steps)

    return apply


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_positions_are_revealed_as_alpha_rises_and_the_network_knows_the_time(schedule):
    """P(revealed at the step from t to s) = (alpha_s - alpha_t) / (1 - alpha_1), and none is left.

    The last step takes what the schedule would leave masked at time 0.
    """
    steps, length = 9, 4
    empty = np.zeros((COUNT // length, length), np.int32)
    tokens, _ = sample(
        clock(schedule, steps), steps, empty, np.zeros(empty.shape, bool), schedule, mask_id=steps
    )
    with jax.enable_x64(True):
        alpha = np.array(process(schedule).schedule.alpha(1 - np.arange(steps + 1) / steps))
    alpha[-1] = 1
    expected = COUNT * np.diff(alpha) / (1 - alpha[0])
    counts = np.bincount(tokens.reshape(-1), minlength=steps)
    assert len(counts) == steps  # no mask
    statistic = ((counts - expected) ** 2 / np.maximum(expected, 1)).sum()
    assert statistic < chi2.isf(1e-6, df=steps - 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_mask_is_left_under_any_schedule(schedule):
    """Also where alpha(0) = 1 - 1e-4, which without its last step would leave 12 masks here."""
    empty = np.zeros((COUNT, LENGTH), np.int32)
    tokens, _ = sample(
        exact_denoiser(JOINT), 1, empty, np.zeros(empty.shape, bool), schedule=schedule
    )
    assert tokens.min() >= 0
    assert tokens.max() < VOCAB


def test_sequence_depends_on_the_key_and_its_number_alone():
    prompt = np.random.default_rng(0).integers(0, VOCAB, (64, LENGTH)).astype(np.int32)
    fixed = np.random.default_rng(1).random(prompt.shape) < 0.3
    apply = exact_denoiser(JOINT)
    all_of_them, _ = sample(apply, 8, prompt, fixed)
    few, _ = sample(apply, 8, prompt[:5], fixed[:5])
    np.testing.assert_array_equal(few, all_of_them[:5])
    others = np.concatenate([prompt[:5], 1 - prompt[5:] % 2])
    changed, _ = sample(apply, 8, others, fixed)
    np.testing.assert_array_equal(changed[:5], all_of_them[:5])
    other_key, _ = sample(apply, 8, prompt, fixed, seed=1)
    assert (other_key != all_of_them).any()


@pytest.mark.parametrize("steps", [1, 6])
def test_nfe_is_the_number_of_steps(steps):
    empty = np.zeros((5, LENGTH), np.int32)
    _, nfe = sample(exact_denoiser(JOINT), steps, empty, np.zeros(empty.shape, bool))
    np.testing.assert_array_equal(nfe, np.full(5, steps))


def test_reveal_probabilities_equal_oracle(oracle):
    """RADD's Tweedie update rates, on its grid of times from 1 to 1e-5."""
    arrays, _ = oracle("radd", "update_rate")
    for steps, (name, schedule) in itertools.product(
        (4, 32), {"loglinear": "log_linear", "geometric": "geometric"}.items()
    ):
        t = arrays[f"timesteps_{steps}__f64"]
        with jax.enable_x64(True):
            chance = process(schedule).reveal(t[1:], t[:-1])
        want = arrays[f"{name}_tweedie_{steps}__f64"]
        np.testing.assert_allclose(chance, want, rtol=1e-6, err_msg=f"{name} {steps}")
        chance = process(schedule).reveal(jnp.float32(t[1:]), jnp.float32(t[:-1]))
        np.testing.assert_allclose(chance, want, rtol=1e-4, atol=1e-4, err_msg=f"{name} {steps}")


def test_positions_are_revealed_at_the_rates_of_the_oracle(oracle):
    """40,000 positions in RADD's 4 steps, the last of which reveals all; wrong once in 10^6.

    Its times end at 1e-5, ours at 0: the probabilities differ by less than 1e-4.
    """
    arrays, _ = oracle("radd", "update_rate")
    for name, schedule in (("loglinear", "log_linear"), ("geometric", "geometric")):
        rates = np.append(arrays[f"{name}_tweedie_4__f64"][:-1], 1)
        expected = COUNT * rates * np.cumprod(np.append(1, 1 - rates[:-1]))
        empty = np.zeros((COUNT // 4, 4), np.int32)
        fixed = np.zeros(empty.shape, bool)
        tokens, _ = sample(clock(schedule, 4), 4, empty, fixed, schedule, mask_id=4)
        counts = np.bincount(tokens.reshape(-1), minlength=4)
        assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-6, df=3)


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
