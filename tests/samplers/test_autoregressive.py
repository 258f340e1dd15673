"""Sampling from the left: its prefix, cache and stop; the law of samples is in test_laws.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import ModelConfig
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.attention_masks import shifted
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.models.network import make_network
from ddm_jax.samplers import SAMPLERS
from ddm_jax.samplers.signature import SampleSpec
from tests.enumerable import random_joint
from tests.laws import chi_square
from tests.models.small import random_params
from tests.visible import exact_table, visible_network

VOCAB, LENGTH, COUNT = 3, 3, 40_000
JOINT = random_joint(VOCAB, LENGTH, seed=3)


@functools.cache
def sampler():
    return jax.jit(
        functools.partial(
            SAMPLERS["autoregressive"].sample,
            visible_network(np.float32(exact_table(JOINT)), ahead=1),
            process=Absorbing(SCHEDULES["log_linear"].make(), VOCAB),
            spec=SampleSpec(steps=7),
        )
    )


def sample(prompt, fixed):
    tokens, stats = sampler()({}, step_key(0, 0), jnp.asarray(prompt), jnp.asarray(fixed))
    prefix = np.cumprod(np.asarray(fixed).all(0)).sum()  # read in one evaluation
    np.testing.assert_array_equal(stats.nfe, np.full(len(prompt), LENGTH - prefix + (prefix > 0)))
    return np.asarray(tokens)


def test_prefix_is_conditioned_on_and_what_is_fixed_later_only_kept():
    """Chi-squares reject the right law once in 10^6.

    x_1 = 2 and x_3 = 1 fixed: x_2 follows p(x_2 | x_1), and not p(x_2 | x_1, x_3).
    """
    prompt = np.broadcast_to(np.array([2, 0, 1], np.int32), (COUNT, LENGTH))
    fixed = np.broadcast_to([True, False, True], prompt.shape)
    tokens = sample(prompt, fixed)
    law = np.zeros_like(JOINT)
    law[2, :, 1] = JOINT[2].sum(-1) / JOINT[2].sum()
    statistic, limit = chi_square(tokens, law.reshape(-1))
    assert statistic < limit


def test_long_prefix_is_conditioned_on():
    prompt = np.broadcast_to(np.array([2, 1, 0], np.int32), (COUNT, LENGTH))
    tokens = sample(prompt, np.broadcast_to([True, True, False], prompt.shape))
    law = np.zeros_like(JOINT)
    law[2, 1] = JOINT[2, 1] / JOINT[2, 1].sum()
    statistic, limit = chi_square(tokens, law.reshape(-1))
    assert statistic < limit


@pytest.mark.slow
def test_greedy_tokens_are_the_best_of_one_causal_pass():
    """A transformer over its cache says what it says of the whole sequence at once."""
    network = make_network(ModelConfig(width=32, depth=2, heads=4, time="none"), 20)
    params = random_params(network, spread=0.3)
    prompt = np.random.default_rng(2).integers(0, 20, (3, 10), np.int32)
    fixed = np.arange(10) < np.array([[4], [1], [7]])
    run = functools.partial(
        SAMPLERS["autoregressive"].sample,
        network.apply,
        process=Absorbing(SCHEDULES["log_linear"].make(), 20),
        spec=SampleSpec(1, temperature=0.0),
    )
    tokens, _ = jax.jit(run)(params, step_key(0, 0), prompt, fixed)

    @jax.jit
    def logits(params, tokens):
        return network.apply(params, shifted(tokens, 20), attend="causal").logits()

    best = np.asarray(logits(params, tokens)).argmax(-1)
    np.testing.assert_array_equal(tokens, np.where(fixed, prompt, best))


def test_drawing_ends_where_every_sequence_has_drawn_the_stop():
    """Up to their first stop, sequences are those that are drawn without one."""
    network = visible_network(np.float32(exact_table(JOINT)), ahead=1)
    process, empty = (
        Absorbing(SCHEDULES["log_linear"].make(), VOCAB),
        np.zeros((2, LENGTH), np.int32),
    )

    @jax.jit
    def draw(seed, stop):
        sample, spec = SAMPLERS["autoregressive"].sample, SampleSpec(steps=1, stop=stop)
        fixed = jnp.zeros(empty.shape, bool)
        tokens, stats = sample(network, {}, step_key(seed, 0), empty, fixed, process, spec)
        return tokens, stats.nfe

    ends = set()
    for seed in range(8):
        whole = np.asarray(draw(seed, -1)[0])
        for stop in range(VOCAB):
            first = [np.append(np.flatnonzero(row == stop), LENGTH - 1)[0] for row in whole]
            end = max(first) + 1
            ends.add(end)
            tokens, nfe = draw(seed, stop)
            np.testing.assert_array_equal(nfe, end)
            np.testing.assert_array_equal(tokens[:, :end], whole[:, :end])
            np.testing.assert_array_equal(tokens[:, end:], stop)
    assert {1, 2, 3} == ends
