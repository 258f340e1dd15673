"""SEDD's losses against exact enumeration: vocabulary 3, length 3, every x0, every x_t, all times.

The exact score leaves a bound that is exact sequence by sequence: with the path x_0..x_1 of the
process, its mean over paths is -log p(x0) - KL(q(x_1 | x0), q(x_1)), for any alpha(1).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.objectives import radd, sedd
from tests.batch import batch_of
from tests.enumerable import all_sequences
from tests.objectives.enumeration import VOCAB, means, said, unseen
from tests.objectives.score_entropy import (
    JOINT,
    KINDS,
    LENGTH,
    LOSS_AT,
    MATRIX,
    everything,
    exact,
    make,
    marginals,
    scaled,
)
from tests.visible import wrong_table

NLL = -np.log(JOINT.reshape(-1))
# the network's output is log s
RAW = {
    "absorb": functools.partial(sedd.absorb_at, scale_by_sigma=False),
    "uniform": sedd.uniform_at,
}


def expectation(kind, says, eps, of="loss", loss_at=None):
    """Mean loss (or bound) of every x0 over t ~ U(0, 1) and x_t: float64[x0]."""
    return means(loss_at or RAW[kind], made(kind, eps), everything(kind, eps), says, of)


made = functools.cache(lambda kind, eps: make(kind, eps=eps))


def wrong(kind, eps):
    """The exact score times random factors between 1/e and e: not normalised, nor any score."""
    says = exact(kind, eps)
    return says + np.random.default_rng(1).uniform(-1, 1, says.shape[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_bound_of_the_mean_exceeds_the_entropy_by_the_score_entropy_of_the_marginal(kind):
    """SEDD theorem 3.4: the excess is E sigma Q(x_t, y) s* phi(log s - log s*), s* the true score.

    Every term of it is positive, so that a wrong score has the larger mean.
    """
    eps, every = 0.05, everything(kind, 0.05)
    true, log_s = exact(kind, eps), wrong(kind, eps)
    got, best = expectation(kind, log_s, eps), expectation(kind, true, eps)
    left = unseen(JOINT, MATRIX[kind](1 - eps))
    np.testing.assert_allclose(best + left, NLL, rtol=1e-6)
    t, weight = every.levels, every.chance[:, 0].sum(1)
    rate = weight * (1 - eps) / (1 - (1 - eps) * t)
    terms = np.exp(log_s) - np.exp(true) - np.exp(true) * (log_s - true)
    states = all_sequences(round(true.shape[1] ** (1 / LENGTH)), LENGTH)[..., None]
    if kind == "uniform":
        moves, rate = np.arange(VOCAB) != states, rate / VOCAB
    else:
        moves = states == VOCAB
    excess = rate @ (marginals(kind, eps) * (terms * moves).sum((2, 3))).sum(1)
    assert excess > 0.1
    np.testing.assert_allclose(JOINT.reshape(-1) @ (got - best), excess, rtol=1e-6)


@pytest.mark.parametrize(("kind", "eps"), [("absorb", 0.0), ("uniform", 0.0), ("uniform", 0.05)])
def test_mean_bound_is_the_entropy_and_what_the_prior_misses_of_the_last_state(kind, eps):
    """KL(q(x_1), prior) for the exact score, and more for a wrong one."""
    got = expectation(kind, exact(kind, eps), eps, of="bound")
    if eps == 0:
        np.testing.assert_allclose(got, NLL, rtol=1e-6)
    marginal, missed = JOINT.reshape(-1), 0
    if kind == "uniform":
        x = all_sequences(VOCAB, LENGTH)
        marginal = marginal @ MATRIX[kind](1 - eps)[x[:, None], x].prod(-1)
        missed = (marginal * np.log(marginal * VOCAB**LENGTH)).sum()
    want = JOINT.reshape(-1) @ NLL + missed
    np.testing.assert_allclose(JOINT.reshape(-1) @ got, want, rtol=1e-6)
    loose = expectation(kind, wrong(kind, eps), eps, of="bound")
    assert JOINT.reshape(-1) @ (loose - got) > 0.1


def test_both_scalings_of_absorbing_scores_are_the_same_loss():
    says = wrong("absorb", 0.05)
    raw = expectation("absorb", says, 0.05)
    got = expectation("absorb", scaled(says, 0.05), 0.05, loss_at=LOSS_AT["absorb"])
    np.testing.assert_allclose(got, raw, rtol=1e-9)


def test_normalised_absorbing_score_gives_the_cross_entropy_of_radd(float64):
    """s_y = p(y) / (e^sigma_bar - 1): for every x_t, and not in expectation only."""
    xt = all_sequences(VOCAB + 1, LENGTH)
    tokens = np.where(xt == VOCAB, np.random.default_rng(0).integers(0, VOCAB, xt.shape), xt)

    @jax.jit
    def both(log_p, tokens, xt, t):
        given = {}, batch_of(tokens), xt, t, make("absorb")
        scores = sedd.absorb_at(said(log_p + jnp.log(VOCAB)), *given)
        return scores.loss, radd.t_dce_at(said(log_p), *given).loss

    got, want = both(wrong_table(VOCAB, LENGTH), tokens, xt, np.linspace(1e-3, 1, len(xt)))
    np.testing.assert_allclose(got, want, rtol=1e-9)


@functools.partial(jax.jit, static_argnums=(0, 1))
def loss_of_tokens(kind, schedule, log_score, x0, xt, t):
    """Of single tokens of a vocabulary, with log scores float[N, 1, V]."""
    vocab = log_score.shape[-1]
    process = {"absorb": Absorbing, "uniform": Uniform}[kind](schedule, vocab)
    return RAW[kind](said(log_score), {}, batch_of(x0), xt, t, process).loss


@pytest.mark.parametrize("name", ["log_linear", "geometric"])
@pytest.mark.parametrize("kind", ["masked", "stayed", "moved"])
def test_float32_is_accurate_from_the_first_moment_to_the_last(kind, name):
    """Relative error below 1e-4 at t = 1e-5..1, for scores within a factor e^3 of the truth."""
    vocab, draws, schedule = 1_000, 4, SCHEDULES[name].make()
    t = np.repeat(np.geomspace(1e-5, 1, 21), draws).astype(np.float32)
    x0 = np.full((len(t), 1), 3)
    xt = {"masked": x0 * 0 + vocab, "stayed": x0, "moved": x0 + 1}[kind]
    noise = np.random.default_rng(0).uniform(-3, 3, (len(t), 1, vocab))
    with jax.enable_x64(True):
        alpha = np.asarray(schedule.alpha(np.float64(t)))[:, None, None]
    if kind == "masked":
        log_score = np.log(alpha / (1 - alpha) / vocab) + noise
    else:
        chance = alpha * (np.arange(vocab) == 3) + (1 - alpha) / vocab
        log_score = np.log(chance / chance[..., xt[0]]) + noise

    def loss(dtype):
        # float64 reads the same rounded scores
        says = log_score.astype(np.float32).astype(dtype)
        with jax.enable_x64(True):
            noise = "absorb" if kind == "masked" else "uniform"
            out = loss_of_tokens(noise, schedule, says, x0, xt, t.astype(dtype))
        assert out.dtype == dtype
        return np.asarray(out)

    want, got = loss(np.float64), loss(np.float32)
    assert (want > 0).all()
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_huge_logits_where_no_loss_is_leave_the_gradient_finite(kind):
    """At x_t itself, at tokens that are not masked, and at padding."""
    xt = np.array([[0, {"absorb": VOCAB, "uniform": 1}[kind], 2]])
    batch = batch_of(np.array([[0, 2, 2]]), np.array([[True, True, False]]))
    huge = np.zeros((1, LENGTH, VOCAB), np.float32)
    huge[0, np.arange(LENGTH), np.minimum(xt[0], 2)] = 1e3  # exp(1e3) is infinite
    huge[0, 1, 2] = 0
    if kind == "absorb":
        huge[0, 0] = 1e3

    @jax.jit
    @jax.value_and_grad
    def loss(logits):
        given = batch, jnp.asarray(xt), jnp.array([0.5]), make(kind)
        return LOSS_AT[kind](said(logits), {}, *given).loss.sum()

    value, gradient = loss(huge)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[huge == 1e3] == 0).all()
