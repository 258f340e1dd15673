"""UDLM against enumeration (vocabulary 3, length 2), and its integrand against its definition."""

import itertools

import jax
import numpy as np
import pytest

from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.objectives.udlm import udlm_at
from tests.enumerable import all_sequences, random_joint
from tests.objectives.enumeration import corruptions, loss_of, means
from tests.plug_in import (
    assert_float32_is_accurate,
    assert_gradient,
    leave_one_out,
    single_tokens,
    step_kl,
    time_nodes,
    uniform_matrix,
    wrong_table,
)

VOCAB, LENGTH = 3, 2
JOINT = random_joint(VOCAB, LENGTH, seed=3)
NLL = -np.log(JOINT.reshape(-1))


def process(eps=0.0, vocab=VOCAB):
    return Uniform(SCHEDULES["log_linear"].make(eps=eps), vocab)


def matrix_at(tau):
    return uniform_matrix(tau, VOCAB)


def bound(denoiser_at, length=LENGTH, start=0.0):
    """The integral over t in (start, 1), for every x0.

    denoiser_at: q(x_t | x_0) -> p[V^L, L, V].
    """
    t, weight = time_nodes()
    nodes = start + (1 - start) * t, (1 - start) * weight
    says = np.log([denoiser_at(matrix_at(t)) for t in nodes[0]])
    every = corruptions(matrix_at, nodes, length)
    return means(udlm_at, process(), every, says, "bound")


def exact(matrix):
    return leave_one_out(JOINT, matrix)


def test_other_denoisers_are_above_in_the_mean():
    """Also the conditional on all of x_t, which is a better guess of x0 but not what UDLM wants."""

    def all_seen(matrix):
        p = leave_one_out(JOINT, matrix) * matrix.T[all_sequences(VOCAB, LENGTH)]
        return p / p.sum(-1, keepdims=True)

    for denoiser in (all_seen, lambda matrix: wrong_table(VOCAB, LENGTH, VOCAB)):
        assert (JOINT.reshape(-1) * (bound(denoiser) - NLL)).sum() > 0.1


def test_times_below_a_thousandth_hold_what_the_docs_say():
    """Entropy of the x0 that one in a thousand redraws leaves: some 0.004 nats a token here."""
    missing = (JOINT.reshape(-1) * (NLL - bound(exact, start=1e-3))).sum() / LENGTH
    assert 0.002 < missing < 0.006


def test_integrand_is_the_limit_of_the_kl_of_ever_more_steps():
    x0, xt = single_tokens(VOCAB, VOCAB)
    p = wrong_table(len(x0), 1, VOCAB)
    with jax.enable_x64(True):
        for t in (0.02, 0.5, 0.97):
            given = np.log(p), x0, xt, np.full(len(x0), t)
            ours = np.asarray(loss_of(udlm_at, process(), *given).loss)
            off = []
            for h in (1e-3 * t, 1e-4 * t):
                kl = [
                    step_kl(matrix_at, t - h, t, *row) / h
                    for row in zip(x0[:, 0], xt[:, 0], p[:, 0], strict=True)
                ]
                off.append(abs(np.array(kl) / ours - 1).max())
            assert off[1] < 1e-2
            assert off[0] / off[1] == pytest.approx(10, rel=0.2)


def test_sums_over_steps_tend_to_the_bound():
    p = wrong_table(VOCAB, 1, VOCAB)
    continuous = bound(lambda matrix: p, length=1)
    off = []
    for steps in (64, 128):
        times = np.linspace(0, 1, steps + 1) ** 2
        total = np.zeros(VOCAB)
        for s, t in itertools.pairwise(times):
            chance = matrix_at(t)
            for x0, xt in zip(*single_tokens(VOCAB, VOCAB), strict=True):
                kl = step_kl(matrix_at, s, t, x0[0], xt[0], p[xt[0], 0])
                total[x0[0]] += chance[x0[0], xt[0]] * kl
        off.append(abs(total / continuous - 1).max())
    assert off[1] < 0.03
    assert off[1] < 0.6 * off[0]


@pytest.mark.parametrize("spread", [1.0, 20.0])
def test_float32_is_accurate_at_all_times(spread):
    """Against float64, relative to the loss of the sequence, from t = 1e-3 to 1; 200 tokens."""
    rng = np.random.default_rng(0)
    vocab, count, length = 200, 12, 4
    t = np.geomspace(1e-3, 1, count).astype(np.float32)
    logits = np.float32(spread * rng.normal(size=(count, length, vocab)))
    x0 = rng.integers(0, vocab, (count, length))
    xt = np.where(rng.random(x0.shape) < 0.5, x0, rng.integers(0, vocab, x0.shape))
    logits[:, ::2] += 30 * (np.arange(vocab) == x0[:, ::2, None])  # sure of it at every other one
    assert_float32_is_accurate(udlm_at, process(1e-3, vocab), logits, x0, xt, t)


def test_prior_kl_is_that_of_the_last_marginal():
    q = uniform_matrix(1 - 1e-3, 7)[2]
    prior_kl = jax.jit(process(1e-3, 7).prior_kl)
    np.testing.assert_allclose(prior_kl(), (q * np.log(q * 7)).sum(), rtol=1e-4)
    assert process(0.0, 7).prior_kl() == 0


def test_gradient_equals_finite_differences(float64):
    assert_gradient(udlm_at, process(1e-3), xt=[0, 1, 1], t=0.3)
