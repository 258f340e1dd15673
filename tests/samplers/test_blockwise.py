"""Blockwise sampling against the exactly computed law of its chain, vocabulary 3, length 4.

Chi-squares reject the right law once in 10^6.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.errors import UserError
from ddm_jax.samplers import SAMPLERS
from ddm_jax.samplers.signature import SampleSpec
from tests.enumerable import all_sequences, conditionals, random_joint
from tests.laws import chi_square
from tests.visible import exact_table, visible_network

VOCAB, LENGTH, COUNT = 3, 4, 100_000
JOINT = random_joint(VOCAB, LENGTH, seed=3)
STATES = all_sequences(VOCAB + 1, LENGTH)  # the mask is token VOCAB
MASKS = [VOCAB] * LENGTH


@functools.cache
def sampler(steps, size):
    """`steps` in each block."""
    return jax.jit(
        functools.partial(
            SAMPLERS["blockwise"].sample,
            visible_network(np.float32(exact_table(JOINT))),
            process=Absorbing(SCHEDULES["log_linear"].make(), VOCAB),
            spec=SampleSpec(steps * LENGTH // max(size, 1)),
            block_size=size,
        )
    )


def sample(steps, size, prompt=None, fixed=None, seed=0):
    prompt = np.zeros((COUNT, LENGTH), np.int32) if prompt is None else prompt
    fixed = np.zeros(prompt.shape, bool) if fixed is None else fixed
    run = sampler(steps, size)
    tokens, stats = run({}, step_key(seed, 0), jnp.asarray(prompt), jnp.asarray(fixed))
    return np.asarray(tokens), np.asarray(stats.nfe)


def law_of_chain(steps, size, start):
    """p(x) after `steps` steps in each block, left to right, under log-linear noise.

    Blocks that are still masked are what the exact denoiser has marginalised; those fixed later
    are hidden from it.
    """
    one_hot = np.eye(VOCAB + 1)
    law = (np.array(start) == STATES).all(1).astype(float)
    for first in range(0, LENGTH, size):
        positions = np.arange(LENGTH)
        now = (positions >= first) & (positions < first + size)
        seen = np.where(positions < first + size, STATES, VOCAB)
        p0 = np.pad(conditionals(JOINT, seen), ((0, 0), (0, 0), (0, 1)))
        for i in range(steps):
            t, s = 1 - i / steps, 1 - (i + 1) / steps
            moves = (s / t) * one_hot[VOCAB] + (1 - s / t) * p0
            free = now & (STATES == VOCAB)
            per_position = np.where(free[..., None], moves, one_hot[STATES])
            law = law @ per_position[:, positions, STATES].prod(-1)
    clean = (STATES != VOCAB).all(1)
    np.testing.assert_allclose(law[clean].sum(), 1)
    return law[clean]


@pytest.mark.parametrize(("steps", "size"), [(1, 1), (3, 1), (1, 2), (3, 2), (3, 4)])
def test_samples_follow_the_law_of_the_chain(steps, size):
    tokens, nfe = sample(steps, size)
    # in each block as many as it has steps with a change, and one for the cache
    blocks = LENGTH // size
    expected = blocks * (1 + steps * (1 - (1 - 1 / steps) ** size))
    assert abs(nfe.mean() - expected) <= 5 * nfe.std() / np.sqrt(COUNT) + 1e-9
    statistic, limit = chi_square(tokens, law_of_chain(steps, size, MASKS))
    assert statistic < limit


def test_blocks_of_one_are_the_joint_and_larger_ones_are_not():
    for steps in (1, 3):
        np.testing.assert_allclose(law_of_chain(steps, 1, MASKS), JOINT.reshape(-1), rtol=1e-9)
    tokens, _ = sample(1, 2)
    statistic, limit = chi_square(tokens, JOINT.reshape(-1))
    assert statistic > limit


def test_fixed_positions_stay_and_are_seen_by_their_block_and_later_ones():
    """x_2 = 1 and x_3 = 0 in blocks of two: x_1 sees the first of them alone."""
    prompt = np.broadcast_to(np.array([2, 1, 0, 2], np.int32), (COUNT, LENGTH))
    fixed = np.broadcast_to([False, True, True, False], prompt.shape)
    tokens, _ = sample(3, 2, prompt, fixed)
    statistic, limit = chi_square(tokens, law_of_chain(3, 2, [VOCAB, 1, 0, VOCAB]))
    assert statistic < limit


def test_sequence_depends_on_the_key_and_its_number_alone():
    prompt = np.random.default_rng(0).integers(0, VOCAB, (COUNT, LENGTH)).astype(np.int32)
    fixed = np.random.default_rng(1).random(prompt.shape) < 0.3
    tokens, _ = sample(3, 2, prompt, fixed)
    np.testing.assert_array_equal(tokens[fixed], prompt[fixed])
    others = np.concatenate([prompt[:5], 1 - prompt[5:] % 2])
    np.testing.assert_array_equal(sample(3, 2, others, fixed)[0][:5], tokens[:5])
    assert (sample(3, 2, prompt, fixed, seed=1)[0] != tokens).any()


@pytest.mark.parametrize("size", [0, 3])
def test_block_that_does_not_divide_the_length_is_refused(size):
    with pytest.raises(UserError, match="block_size"):
        sample(1, size)
