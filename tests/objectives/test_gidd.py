"""GIDD against enumeration (vocabulary 3, length 2), and against absorbing and uniform noise."""

import functools
import itertools

import jax
import numpy as np
import pytest

from ddm_jax.diffusion.hybrid import Hybrid
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.objectives.gidd import gidd_at
from ddm_jax.objectives.udlm import udlm_at
from tests.enumerable import all_sequences, random_joint
from tests.objectives.enumeration import corruptions, loss_of, means
from tests.plug_in import (
    assert_float32_is_accurate,
    assert_gradient,
    hybrid_matrix,
    single_tokens,
    step_kl,
    time_nodes,
    uniform_matrix,
    wrong_table,
)

VOCAB, LENGTH = 3, 2
JOINT = random_joint(VOCAB, LENGTH, seed=3)
NLL = -np.log(JOINT.reshape(-1))
WRONG = wrong_table(VOCAB + 1, LENGTH, VOCAB)


def process(p_uniform=0.2, eps=0.0, vocab=VOCAB):
    return Hybrid(SCHEDULES["log_linear"].make(eps=eps), vocab, p_uniform)


def matrix_at(p_uniform):
    return lambda tau: hybrid_matrix(tau, VOCAB, p_uniform)


def bound(p, p_uniform):
    """The mean over t for every x0 of a network that says p[S^L, L, V] at all times."""
    every = corruptions(matrix_at(p_uniform), time_nodes(), p.shape[1])
    return means(gidd_at, process(p_uniform), every, np.log(p)[None], "bound")


def test_other_denoisers_are_above_in_the_mean():
    assert (JOINT.reshape(-1) * (bound(WRONG, 0.2) - NLL)).sum() > 0.1


def test_without_redraws_it_is_masked_diffusion():
    """E over masks of the cross entropy over tau, exactly: t-DCE of RADD, the bound of MDLM."""
    x0 = all_sequences(VOCAB, LENGTH)
    masks = np.array([[1, 0], [0, 1], [1, 1]], bool)
    mdlm = np.zeros(len(x0))
    for masked in masks:
        state = np.where(masked, VOCAB, x0) @ [VOCAB + 1, 1]
        ce = -np.log(WRONG[state[:, None], [0, 1], x0]) @ masked
        # the integral over tau of tau^(k-1) (1 - tau)^(2-k), k masks
        mdlm += ce / 2
    np.testing.assert_allclose(bound(WRONG, 0.0), mdlm, rtol=1e-6)


def test_with_redraws_alone_it_tends_to_udlm():
    """At p_uniform = 1 - 1e-4 the tokens are noise before any of them is masked."""
    unmasked = all_sequences(VOCAB, LENGTH) @ [VOCAB + 1, 1]
    every = corruptions(lambda tau: uniform_matrix(tau, VOCAB), time_nodes(), LENGTH)
    made = Uniform(SCHEDULES["log_linear"].make(eps=0.0), VOCAB)
    uniform = means(udlm_at, made, every, np.log(WRONG[unmasked])[None], "bound")
    np.testing.assert_allclose(bound(WRONG, 1 - 1e-4), uniform, rtol=2e-3)
    assert abs(bound(WRONG, 0.2) / uniform - 1).max() > 0.05


def test_integrand_is_the_limit_of_the_kl_of_ever_more_steps():
    x0, xt = single_tokens(VOCAB, VOCAB + 1)
    p = wrong_table(len(x0), 1, VOCAB)
    with jax.enable_x64(True):
        for t in (0.02, 0.5, 0.97):
            out = loss_of(gidd_at, process(), np.log(p), x0, xt, np.full(len(x0), t))
            ours = np.asarray(out.bound)
            off = []
            for h in (1e-3 * t * (1 - t), 1e-4 * t * (1 - t)):
                rows = zip(x0[:, 0], xt[:, 0], p[:, 0], strict=True)
                kl = [step_kl(matrix_at(0.2), t - h, t, *row) / h for row in rows]
                off.append(abs(np.array(kl) / ours - 1).max())
            assert off[1] < 1e-3
            assert off[0] / off[1] == pytest.approx(10, rel=0.2)


def test_sums_over_steps_tend_to_the_bound():
    p = wrong_table(VOCAB + 1, 1, VOCAB)
    continuous = bound(p, 0.2)
    off = []
    for steps in (64, 128):
        times = np.sin(np.pi / 2 * np.linspace(0, 1, steps + 1)) ** 4
        total = np.zeros(VOCAB)
        for s, t in itertools.pairwise(times):
            chance = hybrid_matrix(t, VOCAB, 0.2)
            for x0, xt in zip(*single_tokens(VOCAB, VOCAB + 1), strict=True):
                if chance[x0[0], xt[0]] > 1e-12:
                    kl = step_kl(matrix_at(0.2), s, t, x0[0], xt[0], p[xt[0], 0])
                    total[x0[0]] += chance[x0[0], xt[0]] * kl
        off.append(abs(total / continuous - 1).max())
    assert off[1] < 0.03
    assert off[1] < 0.6 * off[0]


def test_weightings_are_those_of_the_paper():
    """w = z' (beta pi)' - (alpha'/alpha) beta pi, over q(z | x0), differentiated numerically."""
    x0, xt = single_tokens(VOCAB, VOCAB + 1)
    p, h = wrong_table(len(x0), 1, VOCAB), 1e-6
    with jax.enable_x64(True):
        weighted = {
            name: functools.partial(gidd_at, weighting=name)
            for name in ("elbo", "clamped", "dynamic")
        }
        for t in (0.01, 0.4, 0.9):
            loss = {}
            for name, loss_at in weighted.items():
                out = loss_of(loss_at, process(), np.log(p), x0, xt, np.full(len(x0), t))
                loss[name] = np.asarray(out.loss)
                np.testing.assert_allclose(out.bound, loss["elbo"], rtol=1e-12)
            before, now, after = (hybrid_matrix(tau, VOCAB, 0.2) for tau in (t - h, t, t + h))
            alpha = np.array([m[0, 0] - m[1, 0] for m in (before, now, after)])
            noise = [m[[1, 0, 0, 0], np.arange(4)] for m in (before, now, after)]
            rate = (noise[2] - noise[0] - (alpha[2] - alpha[0]) / alpha[1] * noise[1]) / (2 * h)
            w = rate[xt[:, 0]] / now[x0[:, 0], xt[:, 0]]
            divergences = loss["elbo"] / w
            np.testing.assert_allclose(loss["clamped"], np.minimum(w, 1) * divergences, rtol=1e-6)
            at_x0 = 0.5 / VOCAB * np.exp(-np.log((1 - t) / t) / 2)  # B/N e^(-lambda/2), B = 1/2
            dynamic = np.where(xt == VOCAB, 2, np.where(xt == x0, at_x0, 1))[:, 0]
            np.testing.assert_allclose(loss["dynamic"], dynamic * divergences, rtol=1e-6)


@pytest.mark.parametrize("p_uniform", [0.0, 0.2])
def test_float32_is_accurate_at_all_times(p_uniform):
    """Against float64, relative to the loss of the sequence, from t = 1e-10 to 1; 200 tokens."""
    rng = np.random.default_rng(0)
    vocab, count, length = 200, 12, 4
    t = np.append(np.geomspace(1e-10, 0.5, count - 4), [0.7, 0.9, 0.999, 1]).astype(np.float32)
    logits = np.float32(10 * rng.normal(size=(count, length, vocab)))
    x0 = rng.integers(0, vocab, (count, length))
    xt = np.where(rng.random(x0.shape) < 0.5, x0, vocab)
    if p_uniform:
        xt = np.where(rng.random(x0.shape) < 0.4, rng.integers(0, vocab, x0.shape), xt)
    logits[:, ::2] += 30 * (np.arange(vocab) == x0[:, ::2, None])  # sure of it at every other one

    def at(apply, params, batch, xt, t, process):
        return gidd_at(apply, params, batch, xt, t, process, "elbo", per_draw=t)

    assert_float32_is_accurate(at, process(p_uniform, 1e-3, vocab), logits, x0, xt, t)


def test_prior_kl_is_that_of_the_last_marginal():
    q = hybrid_matrix(1 - 1e-3, 7, 0.2)[2]
    prior = np.append(np.full(7, q[:7].sum() / 7), q[7])
    kl = jax.jit(process(0.2, 1e-3, 7).prior_kl)()
    np.testing.assert_allclose(kl, (q * np.log(q / prior)).sum(), rtol=1e-4)
    assert process(0.2, 0.0, 7).prior_kl() == 0


@pytest.mark.parametrize("xt", [[0, 1, 1], [VOCAB, 1, 1]])
def test_gradient_equals_finite_differences(float64, xt):
    assert_gradient(gidd_at, process(eps=1e-3), xt=xt, t=0.3)
