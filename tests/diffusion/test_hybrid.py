"""Hybrid noise against its transition matrices (vocabulary 4), and its draws by chi-square."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import chi2

from ddm_jax.diffusion.hybrid import Hybrid
from ddm_jax.diffusion.randomness import example_keys, step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from tests.plug_in import hybrid_matrix

VOCAB, P_UNIFORM = 4, 0.3
PAIRS = [(0.0, 0.2), (0.2, 0.7), (0.7, 0.999), (1e-6, 2e-6)]


def process(schedule="log_linear", **options):
    return Hybrid(SCHEDULES[schedule].make(**options), VOCAB, P_UNIFORM)


def matrix(stay, mask, redraw):
    """The chances of `transition` as a matrix, the mask last."""
    return stay * np.eye(VOCAB + 1) + np.append(np.full(VOCAB, redraw / VOCAB), mask)


@functools.partial(jax.jit, static_argnums=0)
def shares(process, s, t):
    """(the chances of a transition, the levels at its end)."""
    return process.transition(s, t), process.levels(t)


@pytest.mark.parametrize(("s", "t"), PAIRS)
def test_transitions_compose_to_the_marginals_of_the_paper(float64, s, t):
    run = process(eps=0.0)
    transition, levels = jax.device_get(shares(run, np.float64(s), np.float64(t)))
    between = matrix(*transition)
    np.testing.assert_allclose(between.sum(1), 1, rtol=1e-12)
    assert (between >= 0).all()
    want = hybrid_matrix(t, VOCAB, P_UNIFORM)
    np.testing.assert_allclose(hybrid_matrix(s, VOCAB, P_UNIFORM) @ between, want, rtol=1e-9)
    clean, masked, redrawn = levels
    np.testing.assert_allclose(matrix(clean, masked, redrawn) / (1 + redrawn), want, rtol=1e-12)


def test_transitions_are_accurate_in_float32():
    for s, t in PAIRS:
        s, t = np.float32(s), np.float32(t)
        with jax.enable_x64(True):
            want = np.array(shares(process(), np.float64(s), np.float64(t))[0])
        ours = np.array(shares(process(), s, t)[0])
        # t - s itself is a float32 difference
        np.testing.assert_allclose(ours, want, rtol=1e-5)


def test_half_way_the_share_of_redraws_is_p_uniform(float64):
    clean, masked, redrawn = jax.device_get(jax.jit(process(eps=0.0).levels)(0.5))
    assert redrawn / (clean + masked + redrawn) == pytest.approx(P_UNIFORM, rel=1e-12)


@functools.partial(jax.jit, static_argnums=0)
def reverse_logits(process, logits, s, t):
    """Of every x_t."""
    return process.reverse_logits(jnp.arange(VOCAB + 1)[None], logits, s, t)


@pytest.mark.parametrize(("s", "t"), [(0.0, 0.2), (0.2, 0.7), (0.7, 0.999)])
def test_reverse_law_is_bayes_rule(float64, s, t):
    """For p a one-hot (the posterior) and for a soft p (its mixture, then normalised)."""
    m_s, m_t = hybrid_matrix(s, VOCAB, P_UNIFORM), hybrid_matrix(t, VOCAB, P_UNIFORM)
    forward = np.linalg.solve(m_s, m_t)
    soft = np.random.default_rng(0).dirichlet(np.ones(VOCAB))
    for p in [*np.eye(VOCAB), soft]:
        with np.errstate(divide="ignore"):
            log_p = np.broadcast_to(np.log(p), (1, VOCAB + 1, VOCAB))
        logits = reverse_logits(process(eps=0.0), log_p, np.float64(s), np.float64(t))
        law = softmax(np.asarray(logits), axis=-1)[0]
        want = (np.append(p, 0) @ m_s)[:, None] * forward  # [x_s, x_t]
        want = (want / want.sum(0)).T
        np.testing.assert_allclose(law, want, rtol=1e-9, atol=1e-12)
        if s == 0:
            assert (law[:, VOCAB] == 0).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_mask_is_left_at_time_zero_under_any_schedule(schedule):
    """Also where alpha(0) < 1, and then too the first transition is the marginal; no nan."""
    times = np.float32(0), np.float32(1 / 3)
    first, levels = jax.device_get(shares(process(schedule), *times))
    np.testing.assert_allclose(first, levels / np.sum(levels), rtol=1e-5)
    logits = np.zeros((1, VOCAB + 1, VOCAB), np.float32)
    out = np.asarray(reverse_logits(process(schedule), logits, *times))
    assert np.isneginf(out[..., VOCAB]).all()
    assert np.isfinite(out[..., :VOCAB]).any(-1).all()
    assert not np.isnan(out).any()


def draw_counts(tokens):
    return np.bincount(np.asarray(tokens).reshape(-1), minlength=VOCAB + 1)


def assert_law(counts, law):
    """Pearson's statistic against its limit, wrong once in 10^6."""
    expected = counts.sum() * np.asarray(law)
    assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-6, df=len(law) - 1)


@functools.partial(jax.jit, static_argnums=0)
def corrupted(process, x0, t, movable):
    return process.corrupt(example_keys(step_key(0, 0), jnp.arange(1000)), x0, t, movable)


@pytest.mark.parametrize("t", [0.03, 0.5, 0.95])
def test_draws_follow_the_marginals(t):
    x0 = np.full((1000, 100), 1)
    xt = corrupted(process(), x0, np.full(1000, t, np.float32), np.ones(x0.shape, bool))
    assert_law(draw_counts(xt), hybrid_matrix((1 - 1e-3) * t, VOCAB, P_UNIFORM)[1])


def test_immovable_positions_stay():
    x0 = np.full((1000, 100), 2)
    movable = np.broadcast_to(np.arange(100) % 2 == 0, x0.shape)
    xt = np.asarray(corrupted(process(), x0, np.ones(1000, np.float32), movable))
    assert (xt[:, 1::2] == 2).all()
    assert (xt[:, ::2] == VOCAB).mean() > 0.9


def test_prior_is_masked_as_often_as_the_last_marginal():
    last = hybrid_matrix(1 - 0.1, VOCAB, P_UNIFORM)[0]
    prior = np.append(np.full(VOCAB, last[:VOCAB].sum() / VOCAB), last[VOCAB])

    @jax.jit
    def both():
        keys = example_keys(step_key(0, 1), jnp.arange(1000))
        return [process(eps=eps).prior(keys, 100) for eps in (0.1, 0.0)]

    some_left, none_left = both()
    assert_law(draw_counts(some_left), prior)
    assert (np.asarray(none_left) == VOCAB).all()
