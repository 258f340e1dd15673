"""Euler steps against the exactly computed law of their chain, vocabulary 3.

They are right to first order in the step, even for a lone position. Chi-squares reject the right
law once in 10^6.
"""

import numpy as np
import pytest

from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.samplers.euler import euler, euler_x0
from tests.enumerable import random_joint
from tests.laws import chi_square
from tests.scores import Chain

VOCAB, COUNT = 3, 20_000
JOINT = random_joint(VOCAB, 3, seed=3)
# of log-linear noise the Euler steps under masking are those of `ancestral`
NOISE = SCHEDULES["polynomial"].make(k=2.0)
KINDS = ["absorbing", "uniform"]


@pytest.mark.parametrize(("steps", "count"), [(2, COUNT), (4, 5 * COUNT)])
@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_law_of_the_chain(kind, steps, count):
    chain = Chain(JOINT, kind, NOISE, steps)
    tokens, nfe = chain.sample(euler, count)
    statistic, limit = chi_square(tokens, chain.law("euler"))
    assert statistic < limit
    np.testing.assert_array_equal(nfe, np.full(count, steps))
    # the chi-square would notice one step more, and the joint distribution
    for law in (Chain(JOINT, kind, NOISE, steps + 1).law("euler"), JOINT.reshape(-1)):
        assert chi_square(tokens, law)[0] > limit
    if steps == 4:  # and the other rule
        assert chi_square(tokens, chain.law("analytic"))[0] > limit


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_scores_decide_how_many_positions_move(kind):
    chain = Chain(JOINT, kind, NOISE, 4, wrong=1.0)
    tokens, _ = chain.sample(euler, COUNT)
    statistic, limit = chi_square(tokens, chain.law("euler"))
    assert statistic < limit
    assert chi_square(tokens, Chain(JOINT, kind, NOISE, 4).law("euler"))[0] > limit


def test_score_and_its_normalised_network_have_one_law():
    """p(x0 | x_t) is the true score but for a factor, which the x0 network need not say."""
    chain = Chain(JOINT, "absorbing", NOISE, 4)
    tokens, nfe = chain.sample(euler_x0, 5 * COUNT)
    statistic, limit = chi_square(tokens, chain.law("euler"))
    assert statistic < limit
    assert chi_square(tokens, chain.law("analytic"))[0] > limit
    np.testing.assert_array_equal(nfe, np.full(5 * COUNT, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_fixed_positions_stay_and_the_rest_follows_the_chain(kind):
    fixed, prompt = np.array([False, True, False]), np.array([0, 2, 0], np.int32)
    chain = Chain(JOINT, kind, NOISE, 4)
    tokens, _ = chain.sample(euler, COUNT, fixed, prompt)
    assert (tokens[:, 1] == 2).all()
    statistic, limit = chi_square(tokens, chain.law("euler", fixed, prompt))
    assert statistic < limit


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_changes_where_a_position_goes_and_not_when(kind):
    def sharpen(p):
        return p**2 / np.maximum((p**2).sum(-1, keepdims=True), 1e-300)

    chain = Chain(JOINT, kind, NOISE, 3)
    tokens, _ = chain.sample(euler, COUNT, temperature=0.5)
    statistic, limit = chi_square(tokens, chain.law("euler", sharpen=sharpen))
    assert statistic < limit
    assert chi_square(tokens, chain.law("euler"))[0] > limit


@pytest.mark.parametrize("kind", KINDS)
def test_law_of_the_chain_tends_to_the_joint_as_one_over_the_steps(kind):
    joint, noise = random_joint(VOCAB, 2, seed=3), SCHEDULES["polynomial"].make(k=2.0, eps=1e-7)
    far = [
        abs(Chain(joint, kind, noise, n).law("euler") - joint.reshape(-1)).sum() / 2
        for n in (4, 16, 64, 128)
    ]
    assert far[0] > far[1] > far[2] > far[3]
    assert far[2] / far[3] == pytest.approx(2, rel=0.05)


def test_lone_mask_follows_the_true_conditional():
    fixed, prompt = np.array([True, False, True]), np.array([2, 0, 1], np.int32)
    tokens, _ = Chain(JOINT, "absorbing", NOISE, 3).sample(euler, COUNT, fixed, prompt)
    law = np.zeros_like(JOINT)
    law[2, :, 1] = JOINT[2, :, 1] / JOINT[2, :, 1].sum()
    statistic, limit = chi_square(tokens, law.reshape(-1))
    assert statistic < limit
