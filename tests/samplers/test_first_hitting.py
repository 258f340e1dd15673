"""First-hitting sampling: the times of independent positions, and no error from steps.

In the limit of many steps every position has a clock of its own: 1 - alpha at its time, relative to
that at t = 1, is uniform. Chi-squares reject the right law once in 10^6.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.first_hitting import first_hitting, hitting_times
from ddm_jax.samplers.signature import SampleSpec
from tests.chain_rule import law_of_order
from tests.enumerable import exact_denoiser, random_joint, table_network
from tests.laws import absorbing_law, chi_square
from tests.visible import wrong_table

VOCAB, LENGTH, COUNT = 3, 3, 108_000
JOINT = random_joint(VOCAB, LENGTH, seed=3)
MASKS = [VOCAB] * LENGTH


def sampler(apply, schedule="log_linear", mask_id=VOCAB):
    process = Absorbing(SCHEDULES[schedule].make(), mask_id)
    return jax.jit(functools.partial(first_hitting, apply, {}, process=process, spec=SampleSpec(1)))


@functools.cache
def exact():
    return sampler(exact_denoiser(JOINT))


def sample(run, prompt=None, fixed=None, seed=0):
    """(tokens, nfe)."""
    prompt = np.zeros((COUNT, LENGTH), np.int32) if prompt is None else prompt
    fixed = np.zeros(prompt.shape, bool) if fixed is None else fixed
    tokens, stats = run(step_key(seed, 0), jnp.asarray(prompt), jnp.asarray(fixed))
    return np.asarray(tokens), np.asarray(stats.nfe)


def test_the_exact_denoiser_samples_the_joint():
    """And not what a chain of 64 steps makes of it."""
    tokens, nfe = sample(exact())
    np.testing.assert_array_equal(nfe, np.full(COUNT, LENGTH))
    statistic, limit = chi_square(tokens, JOINT.reshape(-1))
    assert statistic < limit
    statistic, limit = chi_square(tokens, absorbing_law(JOINT, 64, MASKS))
    assert statistic > limit


def test_every_order_of_the_positions_is_as_likely():
    """Seen in a network that is wrong, and so has another law in every order."""
    log_p = wrong_table(VOCAB, LENGTH)
    tokens, _ = sample(sampler(table_network(np.float32(log_p))))
    orders = itertools.permutations(range(LENGTH))
    laws = np.array([law_of_order(np.exp(log_p), list(order), MASKS) for order in orders])
    statistic, limit = chi_square(tokens, laws.mean(0))
    assert statistic < limit
    for i in range(len(laws)):
        statistic, limit = chi_square(tokens, np.delete(laws, i, axis=0).mean(0))
        assert statistic > limit


def test_fixed_positions_stay_and_the_rest_follows_given_them():
    """Every token at every position at once; what the prompt says elsewhere is ignored."""
    position, given = (x.reshape(-1) for x in np.indices((LENGTH, VOCAB)))
    position, given = (np.tile(x, COUNT // 9) for x in (position, given))
    fixed = position[:, None] == np.arange(LENGTH)
    prompt = np.where(fixed, given[:, None], 1).astype(np.int32)
    tokens, nfe = sample(exact(), prompt, fixed)
    np.testing.assert_array_equal(nfe, np.full(len(prompt), LENGTH - 1))
    for i, token in itertools.product(range(LENGTH), range(VOCAB)):
        law = np.where(np.indices(JOINT.shape)[i] == token, JOINT, 0).reshape(-1)
        here = tokens[(position == i) & (given == token)]
        statistic, limit = chi_square(here, law / law.sum())
        assert statistic < limit


BINS = 4


def clock(schedule):
    """A network that answers with the quarter of its range in which 1 - alpha is at its time."""

    def apply(params, tokens, sigma, read=None):
        share = -jnp.expm1(-sigma) / SCHEDULES[schedule].make().one_minus_alpha(1.0)
        quarter = jnp.minimum(share * BINS, BINS - 1).astype(int)
        shape = tokens.shape if read is None else read.shape
        hidden = jnp.broadcast_to(1e9 * jax.nn.one_hot(quarter, BINS)[:, None], (*shape, BINS))
        return Readout(hidden, jnp.eye(BINS), jnp.zeros(BINS), BINS)

    return apply


@pytest.mark.parametrize("schedule", ["linear", "geometric"])
def test_every_position_has_its_own_clock(schedule):
    """All 64 triples of quarters are as likely; of the two that a fixed position leaves, all 16."""
    fixed = np.zeros((50_000, LENGTH), bool)
    fixed[::2, 1] = True
    run = sampler(clock(schedule), schedule, mask_id=BINS)
    tokens, _ = sample(run, np.full(fixed.shape, 2, np.int32), fixed)
    statistic, limit = chi_square(tokens[1::2], np.full(BINS**LENGTH, BINS**-LENGTH))
    assert statistic < limit
    assert (tokens[::2, 1] == 2).all()
    statistic, limit = chi_square(tokens[::2, [0, 2]], np.full(BINS**2, BINS**-2))
    assert statistic < limit


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_times_are_those_of_the_formula(schedule):
    """In float64, also of the first events of a thousand, which come close to t = 1."""
    length, masks = 1000, np.array([1000, 3, 0])
    u = np.random.default_rng(0).random((3, length))
    u[:2, 0] = 1e-6, 1 - 1e-6
    u = np.float64(np.float32(u))
    process = Absorbing(SCHEDULES[schedule].make(), 0)
    times = np.asarray(hitting_times(jnp.float32(u), jnp.asarray(masks), process))
    assert times.dtype == np.float32
    assert ((times >= 0) & (times <= 1)).all()
    with jax.enable_x64(True):
        noise = np.array(process.schedule.one_minus_alpha(np.ones(3)))
        clean = process.schedule.one_minus_alpha(np.zeros(3))
        for event in range(length):
            left = masks - event
            here = left > 0
            noise[here] *= (1 - u[here, event]) ** (1 / left[here])
            want = process.schedule.one_minus_alpha(np.float64(times[here, event]))
            expected = np.maximum(noise, clean)[here]
            np.testing.assert_allclose(want, expected, rtol=2e-5, atol=1e-9)


def test_sequence_depends_on_the_key_and_its_number_alone():
    prompt = np.random.default_rng(0).integers(0, VOCAB, (64, LENGTH)).astype(np.int32)
    fixed = np.random.default_rng(1).random(prompt.shape) < 0.3
    tokens, nfe = sample(exact(), prompt, fixed)
    np.testing.assert_array_equal(tokens[fixed], prompt[fixed])
    np.testing.assert_array_equal(nfe, (~fixed).sum(1))
    few, _ = sample(exact(), prompt[:5], fixed[:5])
    np.testing.assert_array_equal(few, tokens[:5])
    others = np.concatenate([prompt[:5], 1 - prompt[5:] % 2])
    np.testing.assert_array_equal(sample(exact(), others, fixed)[0][:5], tokens[:5])
    assert (sample(exact(), prompt, fixed, seed=1)[0] != tokens).any()
