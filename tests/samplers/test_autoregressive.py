"""Sampling from the left draws the joint distribution, exactly. Chi-squares: wrong once in 10^6."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.samplers import SAMPLERS, SampleSpec
from tests.enumerable import random_joint
from tests.samplers.test_ancestral import chi_square
from tests.visible import exact_table, visible_network

VOCAB, LENGTH, COUNT = 3, 3, 40_000
JOINT = random_joint(VOCAB, LENGTH, seed=3)


@functools.cache
def sampler():
    return jax.jit(
        functools.partial(
            SAMPLERS["autoregressive"],
            visible_network(np.float32(exact_table(JOINT)), ahead=1),
            process=Absorbing(SCHEDULES["log_linear"](), VOCAB),
            spec=SampleSpec(steps=7),
        )
    )


def sample(prompt, fixed, seed=0):
    tokens, stats = sampler()({}, step_key(seed, 0), jnp.asarray(prompt), jnp.asarray(fixed))
    np.testing.assert_array_equal(stats.nfe, np.full(len(prompt), LENGTH))
    return np.asarray(tokens)


def test_samples_follow_the_joint():
    empty = np.zeros((COUNT, LENGTH), np.int32)
    tokens = sample(empty, np.zeros(empty.shape, bool))
    statistic, limit = chi_square(tokens, JOINT.reshape(-1))
    assert statistic < limit


def test_prefix_is_conditioned_on_and_what_is_fixed_later_only_kept():
    """x_1 = 2 and x_3 = 1 fixed: x_2 follows p(x_2 | x_1), and not p(x_2 | x_1, x_3)."""
    prompt = np.broadcast_to(np.array([2, 0, 1], np.int32), (COUNT, LENGTH))
    fixed = np.broadcast_to([True, False, True], prompt.shape)
    tokens = sample(prompt, fixed)
    law = np.zeros_like(JOINT)
    law[2, :, 1] = JOINT[2].sum(-1) / JOINT[2].sum()
    statistic, limit = chi_square(tokens, law.reshape(-1))
    assert statistic < limit


def test_sequence_depends_on_the_key_and_its_number_alone():
    prompt = np.random.default_rng(0).integers(0, VOCAB, (COUNT, LENGTH)).astype(np.int32)
    fixed = np.random.default_rng(1).random(prompt.shape) < 0.3
    all_of_them = sample(prompt, fixed)
    np.testing.assert_array_equal(all_of_them[fixed], prompt[fixed])
    others = np.concatenate([prompt[:5], 1 - prompt[5:] % 2])
    np.testing.assert_array_equal(sample(others, fixed)[:5], all_of_them[:5])
    assert (sample(prompt, fixed, seed=1) != all_of_them).any()
