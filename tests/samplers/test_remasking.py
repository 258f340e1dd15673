"""ReMDM against the exactly computed law of its chain, vocabulary 3, length 3.

Chi-squares reject the right law once in 10^6.
"""

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
from tests.enumerable import all_sequences, conditionals, exact_denoiser, random_joint
from tests.laws import absorbing_law, chi_square

VOCAB, LENGTH, COUNT = 3, 3, 100_000
JOINT = random_joint(VOCAB, LENGTH, seed=3)
MASKS = [VOCAB] * LENGTH
APPLY = exact_denoiser(JOINT)
EPS = 1e-3


def process(schedule="log_linear"):
    return Absorbing(SCHEDULES[schedule].make(), VOCAB)


@functools.cache
def jitted(process, options):
    return jax.jit(functools.partial(remdm, APPLY, {}, process=process, **dict(options)))


LOG_LINEAR = process()


def sample(steps, prompt, fixed, process=LOG_LINEAR, seed=0, **options):
    run = jitted(process, tuple(options.items()))
    spec = SampleSpec(jnp.int32(steps))
    tokens, stats = run(step_key(seed, 0), jnp.asarray(prompt), jnp.asarray(fixed), spec=spec)
    return np.asarray(tokens), np.asarray(stats.nfe)


def sigma_of(strategy, eta, alpha_s, alpha_t):
    largest = min(1, (1 - alpha_s) / alpha_t)
    return min(eta, largest) if strategy == "cap" else eta * largest


def law_of_chain(steps, start, strategy, eta, eps=EPS):
    """p(x) after `steps` steps from `start`; what it fixes is not masked again: float64[V^L]."""
    states = all_sequences(VOCAB + 1, LENGTH)
    p0 = np.pad(conditionals(JOINT, states), ((0, 0), (0, 0), (0, 1)))
    eye = np.eye(VOCAB + 1)
    fixed = np.array(start) != VOCAB
    law = (np.array(start) == states).all(1).astype(float)
    for i in range(steps):
        alpha_t, alpha_s = (1 - (1 - eps) * (1 - j / steps) for j in (i, i + 1))
        sigma = sigma_of(strategy, eta, alpha_s, alpha_t)
        reveal = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
        assert 0 <= reveal <= 1
        from_mask = (1 - reveal) * eye[VOCAB] + reveal * p0
        from_token = (1 - sigma) * eye[states] + sigma * eye[VOCAB]
        moves = np.where((states == VOCAB)[..., None], from_mask, from_token)
        moves = np.where(fixed[:, None], eye[states], moves)
        law = law @ moves[:, np.arange(LENGTH), states].prod(-1)
    clean = (states != VOCAB).all(1)
    np.testing.assert_allclose(law[clean].sum(), 1)
    return law[clean]


ETA, STEPS = 0.5, 8


@pytest.mark.parametrize(("strategy", "other"), [("cap", "rescale"), ("rescale", "cap")])
def test_samples_follow_the_law_of_the_chain(strategy, other):
    """And are taken neither for ancestral ones nor for those of the other strategy."""
    empty = np.zeros((COUNT, LENGTH), np.int32)
    tokens, _ = sample(STEPS, empty, empty > 0, strategy=strategy, eta=ETA)
    statistic, limit = chi_square(tokens, law_of_chain(STEPS, MASKS, strategy, ETA))
    assert statistic < limit
    for law in (absorbing_law(JOINT, STEPS, MASKS), law_of_chain(STEPS, MASKS, other, ETA)):
        statistic, limit = chi_square(tokens, law)
        assert statistic > limit


def test_without_remasking_it_is_ancestral_sampling():
    empty = np.zeros((COUNT, LENGTH), np.int32)
    tokens, _ = sample(4, empty, empty > 0, eta=0.0)
    statistic, limit = chi_square(tokens, absorbing_law(JOINT, 4, MASKS))
    assert statistic < limit
    for strategy in ("cap", "rescale"):
        law = law_of_chain(7, MASKS, strategy, 0.0)
        np.testing.assert_allclose(law, absorbing_law(JOINT, 7, MASKS), atol=1e-12)


def test_law_of_the_chain_tends_to_the_joint():
    """As one over the steps where eta goes down with them; under a constant one near their root.

    With an exact network each token that is remasked is one more chance to go wrong.
    """

    def far(steps, strategy, eta):
        return abs(law_of_chain(steps, MASKS, strategy, eta) - JOINT.reshape(-1)).sum() / 2

    few, more, most = (far(n, "cap", 2 / n) for n in (32, 128, 256))
    assert few > 3 * more
    assert more / most == pytest.approx(2, rel=0.1)
    for strategy, eta in (("cap", 0.2), ("rescale", 0.5)):
        few, more, most = (far(n, strategy, eta) for n in (32, 128, 256))
        assert more / most == pytest.approx(2**0.5, rel=0.1)
        assert few > 1.5 * more


@pytest.mark.parametrize("position", [0, 2])
def test_fixed_positions_stay_and_the_rest_follows_given_them(position):
    """The prompt elsewhere is ignored; fixed tokens are never masked again."""
    prompt = np.full((COUNT, LENGTH), 1, np.int32)
    prompt[:, position] = 2
    fixed = np.broadcast_to(np.arange(LENGTH) == position, prompt.shape)
    tokens, _ = sample(4, prompt, fixed, strategy="rescale", eta=ETA)
    assert (tokens[:, position] == 2).all()
    start = [2 if i == position else VOCAB for i in range(LENGTH)]
    statistic, limit = chi_square(tokens, law_of_chain(4, start, "rescale", ETA))
    assert statistic < limit


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
    empty = np.zeros((20_000, LENGTH), np.int32)
    for steps in (1, 4):
        tokens, _ = sample(steps, empty, empty > 0, chosen, strategy="rescale", eta=1.0)
        assert tokens.min() >= 0
        assert tokens.max() < VOCAB


def test_sequence_depends_on_the_key_and_its_number_alone():
    """One program serves all numbers of steps, and nfe is theirs."""
    prompt = np.random.default_rng(0).integers(0, VOCAB, (64, LENGTH)).astype(np.int32)
    fixed = np.random.default_rng(1).random(prompt.shape) < 0.3
    tokens, nfe = sample(8, prompt, fixed)
    np.testing.assert_array_equal(nfe, 8)
    np.testing.assert_array_equal(tokens[fixed], prompt[fixed])
    few, _ = sample(8, prompt[:5], fixed[:5])
    np.testing.assert_array_equal(few, tokens[:5])
    others = np.concatenate([prompt[:5], 1 - prompt[5:] % 2])
    changed, _ = sample(8, others, fixed)
    np.testing.assert_array_equal(changed[:5], tokens[:5])
    other_key, _ = sample(8, prompt, fixed, seed=1)
    assert (other_key != tokens).any()
    compiled = jitted(LOG_LINEAR, ())._cache_size()
    _, nfe = sample(3, prompt, fixed)
    np.testing.assert_array_equal(nfe, 3)
    assert jitted(LOG_LINEAR, ())._cache_size() == compiled
