"""SEDD's analytic sampler against the exactly computed law of its chain, vocabulary 3.

One position alone has the right law in any number of steps; several move without sight of each
other, and the law is the joint distribution only as the steps grow. Chi-squares reject the right
law once in 10^6.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.samplers.analytic import analytic, tweedie
from tests.enumerable import random_joint
from tests.laws import absorbing_law, chi_square
from tests.scores import Chain

VOCAB, COUNT = 3, 20_000
JOINT = random_joint(VOCAB, 3, seed=3)
NOISE = SCHEDULES["log_linear"].make(eps=1e-3)
CLEAN = SCHEDULES["log_linear"].make(eps=1e-6)  # its x_1 is the prior to 1e-6
KINDS = ["absorbing", "uniform"]


@pytest.mark.parametrize(("steps", "count"), [(1, COUNT), (3, 5 * COUNT)])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_law_of_the_chain(kind, steps, count):
    chain = Chain(JOINT, kind, NOISE, steps)
    tokens, nfe = chain.sample(analytic, count)
    statistic, limit = chi_square(tokens, chain.law("analytic"))
    assert statistic < limit
    np.testing.assert_array_equal(nfe, np.full(count, steps))
    # the chi-square would notice one step more, and the joint distribution
    for law in (Chain(JOINT, kind, NOISE, steps + 1).law("analytic"), JOINT.reshape(-1)):
        assert chi_square(tokens, law)[0] > limit


def test_wrong_scores_decide_when_a_mask_is_revealed():
    """They sum to what they like: the law is not that of `ancestral` with the normalised ones."""
    chain = Chain(JOINT, "absorbing", NOISE, 4, wrong=1.0)
    tokens, _ = chain.sample(analytic, COUNT)
    statistic, limit = chi_square(tokens, chain.law("analytic"))
    assert statistic < limit
    plain, _ = chain.sample(analytic, COUNT, scale_by_sigma=False)
    assert (plain == tokens).all(axis=1).mean() > 0.999  # the same scores, said in another way


def test_wrong_scores_of_uniform_noise_are_cut_off_where_they_are_impossible():
    chain = Chain(JOINT, "uniform", NOISE, 4, wrong=1.0)
    statistic, limit = chi_square(chain.sample(analytic, COUNT)[0], chain.law("analytic"))
    assert statistic < limit


def test_true_scores_under_masking_have_the_law_of_ancestral():
    law = Chain(JOINT, "absorbing", NOISE, 5).law("analytic")
    np.testing.assert_allclose(law, absorbing_law(JOINT, 5, [VOCAB] * 3), rtol=1e-6)


def test_geometric_noise_starts_at_scores_of_one_and_ends_clean():
    """At alpha(1) = 2e-9 scores differ by as little; alpha(0), 0.74 here, is 1 at the last step."""
    chain = Chain(JOINT, "uniform", SCHEDULES["geometric"].make(sigma_min=0.3), 3)
    statistic, limit = chi_square(chain.sample(analytic, COUNT)[0], chain.law("analytic"))
    assert statistic < limit


def test_small_scores_beside_large_ones_are_not_lost_in_float32():
    """Late, when another token is all but certain: mean(s) is far above what is left of s_y."""
    score, redrawn = np.array([[1e6, 1e-3, 1.0]]), 1e-9
    want = (score - redrawn * score.mean()) * np.array([[redrawn, redrawn, 3 - 2 * redrawn]]) / 3
    ours = tweedie(jnp.log(jnp.float32(score)), jnp.array([2]), 1 - redrawn, redrawn)
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, want, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_positions_stay_and_the_rest_follows_the_chain(kind):
    fixed, prompt = np.array([False, True, False]), np.array([0, 2, 0], np.int32)
    chain = Chain(JOINT, kind, NOISE, 4)
    tokens, _ = chain.sample(analytic, COUNT, fixed, prompt)
    assert (tokens[:, 1] == 2).all()
    statistic, limit = chi_square(tokens, chain.law("analytic", fixed, prompt))
    assert statistic < limit


def test_lone_mask_follows_the_true_conditional():
    fixed, prompt = np.array([True, False, True]), np.array([2, 0, 1], np.int32)
    tokens, _ = Chain(JOINT, "absorbing", NOISE, 3).sample(analytic, COUNT, fixed, prompt)
    law = np.zeros_like(JOINT)
    law[2, :, 1] = JOINT[2, :, 1] / JOINT[2, :, 1].sum()
    statistic, limit = chi_square(tokens, law.reshape(-1))
    assert statistic < limit


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("spec", "sharpen"),
    [
        ({"temperature": 0.5}, lambda p: p**2 / np.maximum((p**2).sum(-1, keepdims=True), 1e-300)),
        ({"temperature": 0.0}, lambda p: p == p.max(-1, keepdims=True)),
        ({"top_k": 1}, lambda p: p == p.max(-1, keepdims=True)),
        ({"top_p": 0.3}, lambda p: p == p.max(-1, keepdims=True)),  # the best of 3 has 1/3 or more
    ],
)
def test_filters_change_where_a_position_goes_and_not_when(kind, spec, sharpen):
    chain = Chain(JOINT, kind, NOISE, 3)
    tokens, _ = chain.sample(analytic, COUNT, **spec)
    statistic, limit = chi_square(tokens, chain.law("analytic", sharpen=sharpen))
    assert statistic < limit
    assert chi_square(tokens, chain.law("analytic"))[0] > limit


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_law_of_a_lone_position_is_exact_in_any_number_of_steps(kind, steps):
    """From the prior, which is the law of x_1 here."""
    joint = np.array([0.2, 0.7, 0.1])
    chain = Chain(joint, kind, CLEAN, steps)
    np.testing.assert_allclose(chain.law("analytic"), joint, atol=3e-6)
    statistic, limit = chi_square(chain.sample(analytic, COUNT)[0], joint)
    assert statistic < limit


@pytest.mark.parametrize("kind", KINDS)
def test_law_of_the_chain_tends_to_the_joint_as_one_over_the_steps(kind):
    joint = random_joint(VOCAB, 2, seed=3)
    far = [
        abs(Chain(joint, kind, CLEAN, n).law("analytic") - joint.reshape(-1)).sum() / 2
        for n in (1, 16, 64, 128)
    ]
    assert far[0] > far[1] > far[2] > far[3]
    assert far[2] / far[3] == pytest.approx(2, rel=0.05)
    assert far[3] < 0.01


def test_sequence_depends_on_the_key_and_its_number_alone():
    rng = np.random.default_rng(0)
    prompt = rng.integers(0, VOCAB, (64, 3)).astype(np.int32)
    fixed = rng.random(prompt.shape) < 0.3
    chain = Chain(JOINT, "uniform", NOISE, 4)
    all_of_them, _ = chain.sample(analytic, 64, fixed, prompt)
    few, _ = chain.sample(analytic, 5, fixed[:5], prompt[:5])
    np.testing.assert_array_equal(few, all_of_them[:5])
    others = np.concatenate([prompt[:5], 1 - prompt[5:] % 2])
    changed, _ = chain.sample(analytic, 64, fixed, others)
    np.testing.assert_array_equal(changed[:5], all_of_them[:5])
