"""Steps of ReMDM: their marginals, and the last one; the law of its samples is in test_laws.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.d3pm import absorbing
from ddm_jax.diffusion.discrete_schedules import d3pm_mutual_information
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.remasking import remask, remdm
from ddm_jax.samplers.signature import SampleSpec
from tests.enumerable import exact_denoiser, random_joint

VOCAB, LENGTH = 3, 3
JOINT = random_joint(VOCAB, LENGTH, seed=3)
APPLY = exact_denoiser(JOINT)
EPS = 1e-3


def process(schedule="log_linear"):
    return Absorbing(SCHEDULES[schedule].make(), VOCAB)


def certain_of_one(params, tokens, sigma=None):
    hidden = 1e9 * jax.nn.one_hot(jnp.ones_like(tokens), VOCAB)
    return Readout(hidden, jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)


@jax.jit
def stepped(key, x, part, s, t):
    """One step by `part` of the largest sigma, of a network that is right: all tokens are 1."""
    schedule = process().schedule
    sigma = part * jnp.minimum(1, schedule.one_minus_alpha(s) / schedule.alpha(t))
    keys = jax.random.split(key, len(x))
    fixed = jnp.zeros(x.shape, bool)
    readout = certain_of_one({}, x)
    return remask(keys, x, fixed, readout, process(), sigma, s, t, SampleSpec(1))


@pytest.mark.parametrize("part", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("s", "t"), [(0.5, 0.9), (0.1, 0.2), (0.3, 0.3)])
@pytest.mark.slow
def test_a_step_keeps_the_marginal(part, s, t):
    """P(x_s is a mask) = 1 - alpha_s whatever sigma, also where time stands still."""
    shape = (1000, 100)
    start = process().corrupt(
        jax.random.split(step_key(1, 0), shape[0]), jnp.ones(shape, jnp.int32), jnp.full(1000, t)
    )
    x = np.asarray(stepped(step_key(0, 0), start, part, s, t))
    share, want = (x == VOCAB).mean(), (1 - EPS) * s
    assert abs(share - want) < norm.isf(5e-7) * np.sqrt(want * (1 - want) / x.size)
    remasked = (x == VOCAB) & (np.asarray(start) != VOCAB)
    assert remasked.any() == (part > 0)


@pytest.mark.parametrize("schedule", ["cosine", "d3pm"])
def test_the_last_step_reveals_all_and_masks_nothing(schedule):
    """Also where alpha(0) = 1 - 1e-4 would leave masks, and where alpha(1) = 0 divides."""
    d3pm = absorbing(d3pm_mutual_information(20), VOCAB)
    chosen = d3pm if schedule == "d3pm" else process("cosine")
    run = functools.partial(remdm, APPLY, {}, process=chosen, strategy="rescale", eta=1.0)
    run, empty = jax.jit(run), jnp.zeros((20_000, LENGTH), jnp.int32)
    for steps in (1, 4):
        tokens, _ = run(step_key(0, 0), empty, empty > 0, spec=SampleSpec(steps))
        assert tokens.min() >= 0
        assert tokens.max() < VOCAB
