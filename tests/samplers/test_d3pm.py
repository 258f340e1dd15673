"""Ancestral sampling with D3PM's processes against the exact law of the reverse chain.

Vocabulary 3, length 2, a denoiser that is wrong everywhere; chi-squares reject the right law once
in 10^6.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from ddm_jax.diffusion import d3pm_gaussian, d3pm_nearest
from ddm_jax.diffusion.discrete_schedules import d3pm_linear, d3pm_mutual_information
from ddm_jax.diffusion.randomness import example_keys, step_key
from ddm_jax.models.readout import Readout
from ddm_jax.samplers import SAMPLERS
from ddm_jax.samplers.signature import SampleSpec
from tests import chains
from tests.enumerable import all_sequences
from tests.programs import RUNS_LONG

VOCAB, LENGTH, STEPS, COUNT = 3, 2, 4, 20_000


def denoiser(size):
    """p(x0_i | x_t, t), float64[T, S^2, L, V]."""
    shape = STEPS, size**LENGTH, LENGTH
    return np.random.default_rng(2).dirichlet(np.ones(VOCAB), size=shape)


def law_of_chain(name, p, times):
    """p(x) after the steps between `times`, T down to 0, by Bayes' rule on explicit matrices.

    p: what the network says, float64[T, S^2, L, V].
    """
    chain, product = (f(name, STEPS, VOCAB) for f in (chains.one_step, chains.products))
    size = len(product[0])
    xs = all_sequences(size, LENGTH)
    law = chains.prior(name, VOCAB)[xs].prod(1)
    for t, s in itertools.pairwise(times):
        stride = np.linalg.multi_dot([np.eye(size), *chain[s:t], np.eye(size)])
        moves = stride.T[xs] * (p[t - 1] @ product[s][:VOCAB])
        total = moves.sum(-1, keepdims=True)
        # under absorbing noise a token stays, even one that the network rules out
        moves = np.divide(moves, total, out=np.eye(size)[xs], where=total > 0)
        law = law @ moves[:, np.arange(LENGTH), xs].prod(-1)
    np.testing.assert_allclose(law.sum(), 1, rtol=1e-9)
    return law


@functools.cache
def sampler(name):
    size = VOCAB + (name == "absorbing")
    log_p = jnp.log(denoiser(size))

    def apply(params, tokens, sigma):
        # at time 0, where there is nothing left to ask, an answer that is as wrong as any
        t = sigma.astype(int) - 1
        hidden = log_p[t, tokens[:, 0] * size + tokens[:, 1]]
        return Readout(hidden, jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)

    process = chains.make(name, STEPS, VOCAB)
    run = functools.partial(SAMPLERS["ancestral"].sample, apply, {}, process=process)
    return jax.jit(run, compiler_options=RUNS_LONG)


@functools.cache
def drawn(name, steps, top_k):
    empty = np.zeros((COUNT, LENGTH), int)
    spec = SampleSpec(np.int32(steps), top_k=np.int32(top_k))
    tokens, _ = sampler(name)(key=step_key(0, 0), prompt=empty, fixed=empty > 0, spec=spec)
    return np.asarray(tokens)


def assert_law(name, steps, times, top_k=0):
    """`steps` steps draw the law of the chain through `times`."""
    size = VOCAB + (name == "absorbing")
    p = denoiser(size)
    p = np.where(p == p.max(-1, keepdims=True), 1.0, 0.0) if top_k else p
    expected = COUNT * law_of_chain(name, p, times)
    counts = np.bincount(drawn(name, steps, top_k) @ [size, 1], minlength=size**LENGTH)
    possible = expected > 1e-6
    assert counts[~possible].sum() == 0
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < chi2.isf(1e-6, df=max(possible.sum() - 1, 1))


STRIDES = {4: (4, 3, 2, 1, 0), 2: (4, 2, 0), 1: (4, 0)}


@pytest.mark.parametrize("name", chains.NAMES)
@pytest.mark.parametrize("steps", STRIDES)
@pytest.mark.slow
def test_samples_follow_the_law_of_the_chain(name, steps):
    assert_law(name, steps, STRIDES[steps])


@pytest.mark.slow
@pytest.mark.parametrize("name", chains.NAMES)
def test_a_stride_that_does_not_divide_the_chain_rounds_its_times(name):
    """Times 8/3 and 4/3 of 4 are taken for 3 and 1: steps of one, two and one."""
    assert_law(name, 3, (4, 3, 1, 0))
    with pytest.raises(AssertionError):
        assert_law(name, 3, (4, 3, 2, 1, 0))


@pytest.mark.slow
@pytest.mark.parametrize("top_k", [0, 1])
@pytest.mark.parametrize("steps", [7, 8, 33])
@pytest.mark.parametrize("name", chains.NAMES)
def test_more_steps_than_the_chain_has_are_its_own_steps(name, steps, top_k):
    """A step between two times that round to one changes nothing, whatever the network says."""
    assert_law(name, steps, STRIDES[STEPS], top_k)


FAR_VOCAB, FAR_STEPS = 400, 100


@functools.cache
def far(name):
    if name == "gaussian":
        return d3pm_gaussian.gaussian(d3pm_linear(FAR_STEPS), FAR_VOCAB)
    angle = 2 * np.pi * np.arange(FAR_VOCAB) / FAR_VOCAB
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return d3pm_nearest.neighbour_process(d3pm_mutual_information(FAR_STEPS), circle, neighbours=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian", "nearest"])
@pytest.mark.parametrize("s", [0, 1])
def test_a_token_that_is_far_from_the_last_one_can_be_drawn(name, s):
    """The network allows token 200 alone, and x_t = 7 came from there with a chance of e^-1000.

    Before the last step x may stay near 7, for which the modes of "nearest" leave a chance of 1e-9
    by rounding; the last step takes what the network allows.
    """
    keys = example_keys(step_key(0, 0), np.arange(9))
    logits = np.full((9, 1, FAR_VOCAB), -np.inf, np.float32)
    logits[..., 200] = 0
    # not compiled as one, which would hold the process's matrices as constants
    x = far(name).reverse(keys, jnp.full((9, 1), 7), logits, s / FAR_STEPS, (s + 1) / FAR_STEPS)
    x = np.asarray(x)
    stays = (name == "nearest" and s > 0) & (abs(x - 7) <= 10)
    assert ((abs(x - 200) <= 10 * s) | stays).all()
