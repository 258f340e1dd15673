"""Sampling with a schedule for each token against the exactly computed law of its Markov chain."""

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.samplers import SAMPLERS
from ddm_jax.samplers.signature import SampleSpec
from tests.enumerable import all_sequences, conditionals, exact_denoiser, random_joint
from tests.laws import chi_square

VOCAB, LENGTH, COUNT, STEPS = 3, 3, 40_000, 3
JOINT = random_joint(VOCAB, LENGTH, seed=3)
STATES = all_sequences(VOCAB + 1, LENGTH)
PROCESS = Absorbing(SCHEDULES["linear"].make(), mask_id=VOCAB)
W = np.array([0.3, 1.0, 4.0])
EVEN = np.ones(3)


def sample(w, prompt, fixed):
    params = {"objective": {"raw_power": jnp.log(jnp.expm1(jnp.asarray(w, jnp.float32)))}}

    @jax.jit
    def run(key, prompt, fixed):
        return SAMPLERS["vector_ancestral"].sample(
            exact_denoiser(JOINT), params, key, prompt, fixed, PROCESS, SampleSpec(STEPS)
        )

    tokens, stats = run(step_key(0, 0), jnp.asarray(prompt), jnp.asarray(fixed))
    np.testing.assert_array_equal(stats.nfe, np.full(len(prompt), STEPS))
    return np.asarray(tokens)


def law_of_chain(w, start):
    """p(x) after STEPS steps from one state; v is revealed with p_v (1 - (s/t)^w_v)."""
    one_hot = np.eye(VOCAB + 1)
    p0 = conditionals(JOINT, STATES)
    law = (start == STATES).all(1).astype(float)
    for i in range(STEPS):
        t, s = STEPS - i, STEPS - i - 1
        reveal = p0 * (1 - (s / t) ** w)
        moves = np.concatenate([reveal, 1 - reveal.sum(-1, keepdims=True)], -1)
        per_position = np.where((STATES == VOCAB)[..., None], moves, one_hot[STATES])
        law = law @ per_position[:, np.arange(LENGTH), STATES].prod(-1)
    clean = (STATES != VOCAB).all(1)
    np.testing.assert_allclose(law[clean].sum(), 1)
    return np.maximum(law[clean], 0)


def test_samples_follow_the_law_of_the_chain_with_its_powers():
    """And not that of equal powers. Chi-squares reject the right law once in 10^6."""
    empty = np.zeros((COUNT, LENGTH), np.int32)
    tokens = sample(W, empty, np.zeros(empty.shape, bool))
    statistic, limit = chi_square(tokens, law_of_chain(W, [VOCAB] * LENGTH))
    assert statistic < limit
    statistic, limit = chi_square(tokens, law_of_chain(EVEN, [VOCAB] * LENGTH))
    assert statistic > limit


def test_fixed_positions_stay_and_the_rest_follows_given_them():
    prompt = np.broadcast_to(np.array([0, 2, 0], np.int32), (COUNT, LENGTH))
    tokens = sample(W, prompt, np.broadcast_to([False, True, False], prompt.shape))
    np.testing.assert_array_equal(tokens[:, 1], 2)
    statistic, limit = chi_square(tokens, law_of_chain(W, [VOCAB, 2, VOCAB]))
    assert statistic < limit
