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

from ddm_jax.diffusion.d3pm import CONDITION
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.models.network import Readout
from ddm_jax.samplers import SAMPLERS, SampleSpec
from tests import chains
from tests.enumerable import all_sequences

VOCAB, LENGTH, STEPS, COUNT = 3, 2, 4, 20_000


def denoiser(size):
    """p(x0_i | x_t, t), float64[T, S^2, L, V]."""
    shape = STEPS, size**LENGTH, LENGTH
    return np.random.default_rng(2).dirichlet(np.ones(VOCAB), size=shape)


def law_of_chain(name, size, times):
    """p(x) after the steps between `times`, T down to 0, by Bayes' rule on explicit matrices."""
    chain, product = (f(name, STEPS, VOCAB) for f in (chains.one_step, chains.products))
    xs, p = all_sequences(size, LENGTH), denoiser(size)
    law = chains.prior(name, VOCAB)[xs].prod(1)
    for t, s in itertools.pairwise(times):
        stride = np.linalg.multi_dot([np.eye(size), *chain[s:t], np.eye(size)])
        moves = stride.T[xs] * (p[t - 1] @ product[s][:VOCAB])
        total = moves.sum(-1, keepdims=True)
        moves = np.divide(moves, total, out=np.zeros_like(moves), where=total > 0)
        law = law @ moves[:, np.arange(LENGTH), xs].prod(-1)
    np.testing.assert_allclose(law.sum(), 1, rtol=1e-9)
    return law


@pytest.mark.parametrize("name", chains.NAMES)
@pytest.mark.parametrize("times", [(4, 3, 2, 1, 0), (4, 2, 0)], ids=["every step", "every other"])
def test_samples_follow_the_law_of_the_chain(name, times):
    size = VOCAB + (name == "absorbing")
    log_p = jnp.log(denoiser(size))

    def apply(params, tokens, sigma):
        t = jnp.round(sigma / CONDITION * STEPS).astype(int) - 1
        hidden = log_p[t, tokens[:, 0] * size + tokens[:, 1]]
        return Readout(hidden, jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)

    process, spec = chains.make(name, STEPS, VOCAB), SampleSpec(len(times) - 1)
    run = functools.partial(SAMPLERS["ancestral"], apply, {}, process=process, spec=spec)
    empty = jnp.zeros((COUNT, LENGTH), int)
    tokens, _ = jax.jit(run)(step_key(0, 0), empty, empty > 0)
    expected = COUNT * law_of_chain(name, size, times)
    counts = np.bincount(np.asarray(tokens) @ [size, 1], minlength=size**LENGTH)
    possible = expected > 1e-6
    assert counts[~possible].sum() == 0
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < chi2.isf(1e-6, df=possible.sum() - 1)
