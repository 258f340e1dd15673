"""Route-and-denoise sampling against the exactly enumerated law of its states, vocabulary 3.

The network is wrong everywhere, differently at each step: what it is told of the time counts.
Chi-squares reject the right law once in 10^6.
"""

import collections
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from ddm_jax.diffusion import d3pm
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.discrete_schedules import d3pm_mutual_information
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.route_denoise import rdm
from ddm_jax.samplers.signature import SampleSpec
from tests.enumerable import all_sequences, exact_denoiser, random_joint
from tests.laws import absorbing_law, chi_square

VOCAB, LENGTH, STEPS, COUNT = 3, 2, 3, 40_000
EPS = 0.3
SCHEDULE = SCHEDULES["log_linear"].make(eps=EPS)
PROCESSES = {"absorbing": Absorbing(SCHEDULE, VOCAB), "uniform": Uniform(SCHEDULE, VOCAB)}
TABLE = np.random.default_rng(6).dirichlet([0.4] * VOCAB, (STEPS, (VOCAB + 1) ** LENGTH, LENGTH))


def network(params, tokens, sigma):
    step = jnp.round((1 - SCHEDULE.time(sigma)) * STEPS).astype(int)
    hidden = jnp.log(jnp.asarray(TABLE, jnp.float32))[step, tokens @ jnp.array([VOCAB + 1, 1])]
    return Readout(hidden, jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)


@functools.cache
def jitted(apply, process, options):
    return jax.jit(functools.partial(rdm, apply, {}, process=process, **dict(options)))


def sample(apply, process, prompt, fixed, spec, seed=0, **options):
    run = jitted(apply, process, tuple(options.items()))
    tokens, stats = run(step_key(seed, 0), prompt, fixed, spec=spec)
    return np.asarray(tokens), np.asarray(stats.nfe)


def lowest_k(k, scores, noise_scale, rate):
    """[(which stay noise, probability)] of two positions."""
    if k != 1:
        yield np.full(LENGTH, k == LENGTH), 1.0
        return
    scale = noise_scale * rate  # the difference of two Gumbel variables is logistic
    gap = scores[0] - scores[1]
    first = float(gap < 0) if scale == 0 else 1 / (1 + math.exp(np.clip(gap / scale, -700, 700)))
    yield np.array([True, False]), first
    yield np.array([False, True]), 1 - first


def law_of_chain(name, temperature=1.0, routing="uncond", cutoff="linear", noise_scale=0.0):
    """p(x) of two free positions by following every state (tokens, scores, noised)."""
    pairs = all_sequences(VOCAB, LENGTH)
    begin = [(VOCAB,) * LENGTH] if name == "absorbing" else [tuple(x) for x in pairs]
    states = {(x, (0.0,) * LENGTH, (True,) * LENGTH): 1 / len(begin) for x in begin}
    for i in range(STEPS):
        alpha_t, alpha_s = (1 - (1 - EPS) * (1 - j / STEPS) for j in (i, i + 1))
        x = (i + 1) / STEPS
        rate = 1 - x if cutoff == "linear" else math.cos(math.pi / 2 * x)
        after = collections.Counter()
        for (x, old, noised), p in states.items():
            said = TABLE[i, x[0] * (VOCAB + 1) + x[1]]
            drawn = said ** (1 / temperature) / (said ** (1 / temperature)).sum(-1, keepdims=True)
            kept = alpha_t / alpha_s
            for new in pairs:
                p_new = drawn[0, new[0]] * drawn[1, new[1]]
                scores = np.log(said[[0, 1], new])
                if routing == "default":
                    stay = (1 - alpha_s) / (1 - alpha_t)
                    cases = [
                        (np.array(v), math.prod(stay if stays else 1 - stay for stays in v))
                        for v in itertools.product([False, True], repeat=LENGTH)
                    ]
                else:
                    k = int(LENGTH * rate + 1e-9)
                    cases = lowest_k(k, scores, noise_scale, rate)
                for low, p_low in cases:
                    falls = low & (routing != "default")
                    if routing == "cond":
                        falls &= (new == x) & (scores < np.array(old))
                    noise_now = np.where(noised, low, falls)
                    choices = []
                    for j in range(LENGTH):
                        if not noise_now[j]:
                            token = new[j] if noised[j] else x[j]
                            choices.append([(int(token), 1.0)])
                        elif name == "absorbing":
                            choices.append([(VOCAB, 1.0)])
                        else:
                            keep = kept if noised[j] else 0.0
                            law = (1 - keep) / VOCAB + keep * (np.arange(VOCAB) == x[j])
                            choices.append(list(enumerate(law)))
                    score = tuple(np.where(noise_now, -np.inf, np.where(noised, scores, old)))
                    for both in itertools.product(*choices):
                        chance = p * p_new * p_low * math.prod(c for _, c in both)
                        if chance:
                            tokens = tuple(v for v, _ in both)
                            after[tokens, score, tuple(noise_now.tolist())] += chance
        states = after
    law = np.zeros((VOCAB,) * LENGTH)
    for (x, _, noised), p in states.items():
        assert not any(noised)
        law[x] += p
    np.testing.assert_allclose(law.sum(), 1)
    return law.reshape(-1)


UNCOND = {"temperature": 0.5, "cutoff": "cosine"}
COND = {"routing": "cond", "noise_scale": 1.0, "cutoff": "cosine"}
CASES = {
    "absorbing, uncond": ("absorbing", UNCOND),
    "absorbing, cond": ("absorbing", COND),
    "uniform, uncond": ("uniform", UNCOND),
    "uniform, default": ("uniform", {"routing": "default"}),
}


def first_is_fast(names):
    first, *others = names
    return [first, *(pytest.param(name, marks=pytest.mark.slow) for name in others)]


@pytest.mark.parametrize("case", first_is_fast(CASES))
def test_samples_follow_the_law_of_the_chain(case):
    name, options = CASES[case]
    law = law_of_chain(name, **options)
    empty = np.zeros((COUNT, LENGTH), np.int32)
    options = {"temperature": 1.0} | options
    spec = SampleSpec(STEPS, options.pop("temperature"))
    tokens, _ = sample(network, PROCESSES[name], empty, empty > 0, spec, **options)
    statistic, limit = chi_square(tokens, law)
    assert statistic < limit


@pytest.mark.slow
@pytest.mark.parametrize("name", PROCESSES)
def test_the_chi_square_tells_the_options(name):
    """Each of them taken away, the law is another: its statistic would be 150 on average."""
    uncond, cond = law_of_chain(name, **UNCOND), law_of_chain(name, **COND)
    others = [(uncond, law_of_chain(name, **UNCOND | {"temperature": 1.0}))]
    others += [(cond, law_of_chain(name, **COND | {k: v})) for k, v in DEFAULTS.items()]
    for law, other in others:
        assert COUNT * ((law - other) ** 2 / law).sum() > 150


DEFAULTS = {"routing": "uncond", "noise_scale": 0.0, "cutoff": "linear"}
JOINT = random_joint(3, 3, seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 4])
def test_default_routing_of_masks_has_the_law_of_ancestral_sampling(steps):
    empty = np.zeros((COUNT, 3), np.int32)
    process = Absorbing(SCHEDULES["log_linear"].make(), 3)
    spec = SampleSpec(steps)
    tokens, _ = sample(denoiser(), process, empty, empty > 0, spec, routing="default")
    statistic, limit = chi_square(tokens, absorbing_law(JOINT, steps, [3] * 3))
    assert statistic < limit


@functools.cache
def denoiser():
    return exact_denoiser(JOINT)


PROMPT = np.repeat(all_sequences(VOCAB, LENGTH), 4, axis=0)
FIXED = np.tile(all_sequences(2, LENGTH) == 1, (VOCAB**LENGTH, 1))


def traced(steps, temperature=1.0, top_k=0, top_p=1.0):
    floats = np.float32(temperature), np.float32(top_p)
    return SampleSpec(np.int32(steps), floats[0], np.int32(top_k), floats[1])


@pytest.mark.slow
def test_temperature_0_takes_the_surest_tokens_first():
    """As by hand, from every prompt of three tokens; top_k = 1 and a tiny top_p draw the same.

    The logits are not normalised, each position in its own way.
    """
    steps, length = 5, 3
    rng = np.random.default_rng(7)
    shape = steps, (VOCAB + 1) ** length, length
    table = rng.normal(size=(*shape, VOCAB)) + rng.normal(size=(*shape, 1))
    powers = (VOCAB + 1) ** np.arange(length)[::-1]

    def apply(params, tokens, sigma):
        step = jnp.round((1 - SCHEDULE.time(sigma)) * steps).astype(int)
        hidden = jnp.asarray(table, jnp.float32)[step, tokens @ jnp.asarray(powers)]
        return Readout(hidden, jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)

    prompt = np.repeat(all_sequences(VOCAB, length), 2**length, axis=0)
    fixed = np.tile(all_sequences(2, length) == 1, (VOCAB**length, 1))
    process = PROCESSES["absorbing"]
    tokens, _ = sample(apply, process, prompt, fixed, traced(steps, temperature=0.0))
    said = table - np.logaddexp.reduce(table, -1, keepdims=True)
    for row in range(len(prompt)):
        x = np.where(fixed[row], prompt[row], VOCAB)
        noised = x == VOCAB
        free = noised.sum()
        for i in range(steps):
            log_p = said[i, x @ powers]
            order = np.argsort(np.where(fixed[row], 2, log_p.max(-1)))
            stays = np.isin(np.arange(length), order[: free * (steps - 1 - i) // steps])
            x = np.where(stays, VOCAB, np.where(noised, log_p.argmax(-1), x))
            noised = stays
        np.testing.assert_array_equal(tokens[row], x)
    for spec in (traced(steps, top_k=1), traced(steps, top_p=1e-6)):
        np.testing.assert_array_equal(sample(apply, process, prompt, fixed, spec)[0], tokens)


@pytest.mark.slow
def test_noisy_scores_reveal_in_proportion_to_a_power_of_the_probability():
    """One of three is revealed first: i with softmax(log p / (noise_scale rate))_i, here p_i.

    The network then says 1 where it said 0, and conditional routing keeps the first token.
    """
    p, vocab = np.array([0.7, 0.4, 0.1]), 20
    others = np.repeat((1 - p)[:, None] / (vocab - 1), vocab - 1, axis=1)
    first = jnp.log(jnp.asarray(np.concatenate([p[:, None], others], axis=1), jnp.float32))

    def apply(params, tokens, sigma):
        begun = (tokens < vocab).any(-1)[:, None, None]
        hidden = jnp.where(begun, 99.0 * jax.nn.one_hot(1, vocab), first)
        return Readout(hidden, jnp.eye(vocab), jnp.zeros(vocab), vocab)

    empty = np.zeros((COUNT, 3), np.int32)
    options = {"routing": "cond", "noise_scale": 1.5}
    process, spec = Absorbing(SCHEDULE, vocab), SampleSpec(3, temperature=0.0)
    tokens, _ = sample(apply, process, empty, empty > 0, spec, **options)
    np.testing.assert_array_equal((tokens == 0).sum(1), 1)
    counts, expected = (tokens == 0).sum(0), COUNT * p / p.sum()
    assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-6, df=2)


def certain(length, mask_id):
    """A network that is sure of everything: all scores are 0, and tie."""

    def apply(params, tokens, sigma):
        hidden = 1e9 * jax.nn.one_hot((tokens + jnp.arange(length)) % mask_id, mask_id)
        return Readout(hidden, jnp.eye(mask_id), jnp.zeros(mask_id), mask_id)

    return apply


@pytest.mark.parametrize("routing", first_is_fast(["uncond", "cond", "default"]))
def test_no_mask_is_left_when_all_scores_tie(routing):
    """Nor by default routing under a schedule whose alpha(0) is 0.9."""
    process = Absorbing(SCHEDULES["cosine"].make(eps=0.1), 5)
    empty = np.zeros((50, 7), np.int32)
    network = certain(7, 5)
    for steps in (1, 2, 3, 9):
        options = {"routing": routing, "cutoff": "cosine"}
        tokens, _ = sample(network, process, empty, empty > 0, traced(steps), **options)
        assert tokens.min() >= 0
        assert tokens.max() < 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["absorbing", "d3pm_uniform"])
def test_fixed_positions_never_change_and_only_the_key_matters(name):
    """Also that one compiled program serves all steps, temperatures and cuts."""
    uniform = d3pm.uniform(d3pm_mutual_information(10), VOCAB)
    process = {"absorbing": PROCESSES["absorbing"], "d3pm_uniform": uniform}[name]
    tokens, nfe = sample(network, process, PROMPT, FIXED, traced(8))
    np.testing.assert_array_equal(nfe, 8)
    assert tokens.min() >= 0
    assert tokens.max() < VOCAB
    np.testing.assert_array_equal(tokens[FIXED], PROMPT[FIXED])
    assert (tokens[~FIXED] != PROMPT[~FIXED]).any()
    others = np.concatenate([PROMPT[:5], 1 - PROMPT[5:] % 2])
    changed, _ = sample(network, process, others, FIXED, traced(8))
    np.testing.assert_array_equal(changed[:5], tokens[:5])
    other_key, _ = sample(network, process, PROMPT, FIXED, traced(8), seed=1)
    assert (other_key != tokens).any()
    before = jitted(network, process, ())._cache_size()
    _, nfe = sample(network, process, PROMPT, FIXED, traced(3, 0.0, 1, 0.5))
    np.testing.assert_array_equal(nfe, 3)
    assert jitted(network, process, ())._cache_size() == before
    if name == "absorbing":  # one more size is one more program
        few, _ = sample(network, process, PROMPT[:5], FIXED[:5], traced(8))
        np.testing.assert_array_equal(few, tokens[:5])


SAYS = np.random.default_rng(7).normal(size=(5, VOCAB)).astype(np.float32) * 2


def always_the_same(params, tokens, sigma):
    hidden = jnp.broadcast_to(SAYS, (*tokens.shape, VOCAB))
    return Readout(hidden, jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)


@pytest.mark.parametrize("routing", first_is_fast(["uncond", "cond", "default"]))
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_score_is_the_mean_log_probability_of_what_was_drawn(routing, temperature):
    """Of a network that says the same at every step, at temperature 1 whatever tokens are drawn."""
    length, count = len(SAYS), 4
    fixed = np.arange(length) == np.array([[1], [1], [1], [length]])  # the last has none
    prompt = np.full((count, length), 2, np.int32)
    run = jitted(always_the_same, PROCESSES["absorbing"], (("routing", routing),))
    tokens, stats = run(step_key(1, 0), prompt, fixed, spec=traced(3, temperature))
    log_p = SAYS - np.log(np.exp(SAYS).sum(axis=1, keepdims=True))
    each = np.where(fixed, 0, log_p[np.arange(length), np.asarray(tokens)])
    np.testing.assert_allclose(stats.score, each.sum(1) / (~fixed).sum(1), rtol=1e-5)
