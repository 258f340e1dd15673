"""The event-driven sampler and the published cached one: when and how often they evaluate.

The law of their samples is in test_laws.py.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.models.readout import Readout
from ddm_jax.samplers import SAMPLERS
from ddm_jax.samplers.event_driven import reveal_steps
from ddm_jax.samplers.signature import SampleSpec
from tests.enumerable import exact_denoiser, random_joint

VOCAB, LENGTH, COUNT = 3, 4, 50
JOINT = random_joint(VOCAB, LENGTH, seed=3)


def process(schedule="log_linear", mask_id=VOCAB, **options):
    return Absorbing(SCHEDULES[schedule].make(**options), mask_id)


TRACES = []


@functools.cache
def sampler():
    network = exact_denoiser(JOINT)

    def counting(params, tokens, sigma=None, read=None):
        TRACES.append(1)
        return network(params, tokens, sigma, read)

    return jax.jit(functools.partial(SAMPLERS["event_driven"].sample, counting, process=process()))


def sample(steps, prompt, fixed, temperature=1.0, top_k=0, top_p=1.0):
    spec = SampleSpec(steps, temperature, top_k, top_p)
    tokens, stats = sampler()({}, step_key(0, 0), prompt, fixed, spec=spec)
    return np.asarray(tokens), np.asarray(stats.nfe)


PROMPT = np.ones((COUNT, LENGTH), np.int32)


def test_everything_fixed_needs_no_evaluation():
    tokens, nfe = sample(5, PROMPT, PROMPT > 0)
    np.testing.assert_array_equal(tokens, PROMPT)
    np.testing.assert_array_equal(nfe, np.zeros(COUNT))


@pytest.mark.slow
def test_many_positions_at_once_are_drawn_like_few():
    """24 positions in 2 steps: more than are read in one go."""
    length, vocab = 24, 5
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(length, vocab)), jnp.float32)

    def apply(params, tokens, sigma=None, read=None):
        hidden = jnp.broadcast_to(logits, (*tokens.shape, vocab))
        readout = Readout(hidden, jnp.eye(vocab), jnp.zeros(vocab), vocab)
        return readout if read is None else readout.at(jnp.minimum(read, length - 1))

    empty = jnp.zeros((3, length), jnp.int32)
    found = []
    for name, numbers in (("event_driven", (2, 1_000)), ("cached", (2,))):
        run = jax.jit(
            functools.partial(SAMPLERS[name].sample, apply, process=process(mask_id=vocab))
        )
        for steps in numbers:
            tokens, _ = run({}, step_key(0, 0), empty, empty > 0, spec=SampleSpec(steps))
            found.append(np.asarray(tokens))
    np.testing.assert_array_equal(found[0], found[1])  # positions keep their keys
    np.testing.assert_array_equal(found[0], found[2])


@functools.cache
def sampler_of_ones():
    """Of a vocabulary of one token."""

    def apply(params, tokens, sigma=None, read=None):
        hidden = jnp.zeros((*(tokens if read is None else read).shape, 1))
        return Readout(hidden, jnp.ones((1, 1)), jnp.zeros(1), 1)

    run = functools.partial(SAMPLERS["event_driven"].sample, apply, process=process(mask_id=1))
    return jax.jit(run)


@pytest.mark.slow
@pytest.mark.parametrize(("length", "steps"), [(16, 4), (16, 16), (16, 100), (64, 32)])
def test_nfe_has_the_expectation_of_the_closed_form(length, steps):
    """N (1 - (1 - 1/N)^l) under log-linear noise, within 5 standard errors."""
    count = 4_000
    empty = jnp.zeros((count, length), jnp.int32)
    _, stats = sampler_of_ones()({}, step_key(0, 0), empty, empty > 0, spec=SampleSpec(steps))
    nfe = np.asarray(stats.nfe, np.float64)
    expected = steps * (1 - (1 - 1 / steps) ** length)
    error = max(nfe.std() / np.sqrt(count), 1e-12)
    assert abs(nfe.mean() - expected) < 5 * error
    assert norm.sf(5) < 1e-6


def test_a_batch_costs_the_evaluations_of_its_slowest_sequence():
    calls = []
    network = exact_denoiser(JOINT)

    def spy(params, tokens, sigma=None, read=None):
        jax.debug.callback(lambda: calls.append(1))
        return network(params, tokens, sigma, read)

    empty = jnp.zeros((32, LENGTH), jnp.int32)
    run = functools.partial(SAMPLERS["event_driven"].sample, spy, process=process())
    _, stats = jax.jit(run)({}, step_key(0, 0), empty, empty > 0, spec=SampleSpec(64))
    jax.block_until_ready(stats)
    jax.effects_barrier()
    assert len(calls) == stats.nfe.max()
    assert stats.nfe.min() < stats.nfe.max()


@pytest.mark.slow
def test_every_sequence_is_told_the_time_of_its_own_step():
    """At each evaluation sigma belongs to the step at which its sequence changes."""
    seen = []

    def apply(params, tokens, sigma, read=None):
        jax.debug.callback(lambda x, s: seen.append((np.array(x), np.array(s))), tokens, sigma)
        hidden = jnp.zeros((*(tokens if read is None else read).shape, 2))
        return Readout(hidden, jnp.eye(2), jnp.zeros(2), 2)

    steps, noise = 50, process("cosine", 2)
    empty = jnp.zeros((6, 12), jnp.int32)
    run = functools.partial(SAMPLERS["event_driven"].sample, apply, process=noise)
    tokens, _ = jax.jit(run)({}, step_key(3, 0), empty, empty > 0, spec=SampleSpec(steps))
    jax.block_until_ready(tokens)
    jax.effects_barrier()
    states = [x for x, _ in seen] + [np.asarray(tokens)]
    for row in range(6):
        times = []
        for (x, sigma), after in zip(seen, states[1:], strict=True):
            if (x[row] != after[row]).any():
                times.append(float(noise.schedule.time(sigma[row])) * steps)
        on_grid = np.round(times)
        np.testing.assert_allclose(times, on_grid, atol=1e-2)
        assert (np.diff(on_grid) < 0).all()
        assert on_grid[0] <= steps
        assert on_grid[-1] >= 1


@pytest.mark.parametrize("schedule", ["log_linear", "cosine", "geometric"])
def test_positions_are_revealed_at_the_rate_of_the_schedule(schedule):
    """(alpha_s - alpha_t) / (1 - alpha_t) of what is left, and in the last step all."""
    steps, noise = 5, process(schedule)
    u = (jnp.arange(100_000) + 0.5) / 100_000
    found = np.bincount(reveal_steps(u, noise, jnp.int32(steps)), minlength=steps) / len(u)
    t = 1 - jnp.arange(steps) / steps
    chance = np.append(noise.reveal(t[1:], t[:-1]), 1)
    expected = chance * np.cumprod(np.append(1, 1 - chance[:-1]))
    np.testing.assert_allclose(found, expected, atol=3e-5)


def test_steps_temperature_and_prompt_do_not_compile_again():
    sample(4, PROMPT, PROMPT == 0)
    traced = len(TRACES)
    sample(9, 0 * PROMPT, np.arange(LENGTH) == PROMPT, 0.5, 2, 0.9)
    assert len(TRACES) == traced


def test_temperature_zero_takes_the_best_token():
    tokens, _ = sample(1, PROMPT, PROMPT == 0, temperature=0.0)
    best = [JOINT.sum(tuple(j for j in range(LENGTH) if j != i)).argmax() for i in range(LENGTH)]
    np.testing.assert_array_equal(tokens, np.broadcast_to(best, tokens.shape))
