"""RDM's loss against exact enumeration: vocabulary 3, length 2, every x_t, every t; its draws."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from ddm_jax.diffusion.randomness import example_keys, step_key, uniforms
from ddm_jax.models.readout import Readout
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.objectives.rdm import WEIGHTINGS, pair, rdm_at
from ddm_jax.objectives.signature import Noise
from tests import chains, masking
from tests.enumerable import all_sequences, wrong_denoiser

VOCAB, LENGTH, STEPS = 3, 2, 4
KINDS = ("absorbing", "uniform")
ROWS = {"absorbing": "rdm_absorb", "uniform": "rdm_multinomial"}
LAMBDA = {  # of t = 1 .. 4
    "linear": [1, 3 / 4, 1 / 2, 1 / 4],
    "reciprocal": [1, 1 / 2, 1 / 3, 1 / 4],
    "none": [1, 1, 1, 1],
}
X0 = np.array([2, 1])


def states(kind):
    return VOCAB + (kind == "absorbing")


def answers(kind):
    """The logits of every x_t at every t, not normalised: float64[T, S^2, L, V]."""
    shape = STEPS, states(kind) ** LENGTH, LENGTH, VOCAB
    return np.random.default_rng(4).normal(0.5, 2, size=shape)


def network(kind):
    """apply(params, tokens, sigma) that looks the step and the state up; params: the logits.

    Tokens beyond the second are padding, which must stay 1.
    """

    def apply(params, tokens, sigma):
        first, second, *padding = tokens.T
        hidden = params[sigma.astype(int) - 1, first * states(kind) + second]
        hidden = jnp.pad(hidden, ((0, 0), (0, len(padding)), (0, 0)))
        hidden = jnp.where((tokens[:, LENGTH:] == 1).all(), hidden, jnp.nan)
        return Readout(hidden, jnp.eye(VOCAB, dtype=hidden.dtype), jnp.zeros(VOCAB), VOCAB)

    return apply


def everything(kind):
    """(x_t int[T * S^2, 2], t float[T * S^2] of them, their probability, what the loss is there).

    The last: float64[T, S^2] of a weighting and a smoothing.
    """
    product, xt, logits = (
        chains.products(kind, STEPS, VOCAB),
        all_sequences(states(kind), LENGTH),
        answers(kind),
    )
    chance = np.stack([product[t][X0, xt].prod(-1) for t in range(1, STEPS + 1)]) / STEPS
    log_p = logits - np.logaddexp.reduce(logits, -1, keepdims=True)
    ce, smooth = -log_p[..., np.arange(LENGTH), X0], -log_p.mean(-1)

    def loss(weighting, smoothing):
        weight = np.array(LAMBDA[weighting])[:, None, None]
        each = (1 - smoothing) * weight * ce + smoothing * smooth
        return STEPS * np.where(xt == X0, 0, each).sum(-1)

    t = np.repeat(np.arange(1, STEPS + 1) / STEPS, len(xt))
    return np.tile(xt, (STEPS, 1)), t, chance, loss


@pytest.mark.parametrize("kind", KINDS)
def test_loss_at_every_state_is_the_formula(kind, float64):
    """Every weighting, t = 1 and t = T among the times, with and without smoothing."""
    assert set(WEIGHTINGS) == set(LAMBDA)
    xt, t, _, loss = everything(kind)
    process = chains.make(kind, STEPS, VOCAB)
    batch = {"tokens": jnp.tile(X0, (len(xt), 1)), "valid": jnp.ones(xt.shape, bool)}
    given = network(kind), jnp.asarray(answers(kind)), batch, jnp.asarray(xt), jnp.asarray(t)
    for weighting, smoothing in itertools.product(LAMBDA, (0.0, 0.1)):
        out = rdm_at(*given, process, weighting, smoothing)
        np.testing.assert_allclose(out.loss, loss(weighting, smoothing).ravel(), rtol=1e-12)
        np.testing.assert_allclose(out.metrics["noised"], (xt != X0).mean(1), rtol=1e-6)
        assert out.bound is None


def test_reciprocal_weights_without_smoothing_are_the_bound_in_steps(float64):
    """E over t and masks, of a wrong denoiser, against KL of explicit posteriors, for every x0."""
    apply = wrong_denoiser(masking.VOCAB, masking.LENGTH)
    times = np.arange(1, STEPS + 1) / STEPS
    process = chains.make("absorbing", STEPS, masking.VOCAB)
    batch, xt, t = masking.every_corruption(times)

    def blind(params, tokens, sigma):
        return apply(params, tokens)

    at = functools.partial(rdm_at, blind, {}, batch, xt, t, process)
    loss = at(weighting="reciprocal", label_smoothing=0.0).loss
    loss = np.asarray(loss).reshape(STEPS, len(masking.X0), len(masking.MASKS))
    mean = (masking.even_mask_law(times) * loss).sum(-1).mean(0)
    alpha = np.broadcast_to(1 - np.append(0, times)[:, None], (STEPS + 1, masking.VOCAB))
    want = masking.bound_in_steps(alpha, masking.answers(apply))
    np.testing.assert_allclose(mean, want, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_enumerated_mean(kind):
    """Means of 8,000 draws within 5 standard errors (wrong once in 10^6), padding untouched.

    Every way to draw has the same mean; two corruptions make it surer.
    """
    count = 8_000
    _, _, chance, loss = everything(kind)
    want = (chance * loss("linear", 0.1)).sum()
    batch = {
        "tokens": jnp.tile(jnp.asarray([*X0, 1]), (count, 1)),
        "valid": jnp.broadcast_to(jnp.arange(3) < 2, (count, 3)),
    }
    keys = example_keys(step_key(0, 5), jnp.arange(count))
    noise = Noise(uniforms(example_keys(step_key(0, 6), jnp.arange(count))), keys)
    process = chains.make(kind, STEPS, VOCAB)
    given = network(kind), jnp.asarray(answers(kind)), batch, noise, process

    @jax.jit
    def draw():
        ways = ("default", "multi_step", "multi_sample", "coupled")
        return [OBJECTIVES[ROWS[kind]].loss(*given, q_sample=way).loss for way in ways]

    one, *two = (np.asarray(x) for x in draw())
    for drawn in (one, *two):
        assert abs(drawn.mean() - want) < 5 * drawn.std() / np.sqrt(count)
    assert all(drawn.std() < 0.95 * one.std() for drawn in two)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("q_sample", ["multi_step", "multi_sample", "coupled"])
def test_pairs_of_corruptions_have_the_law_of_explicit_matrices(kind, q_sample):
    """The joint law of both times and tokens; chi-square, rejects the right law once in 10^6."""
    count = 20_000
    batch = {
        "tokens": jnp.ones((count, 2), int),
        "valid": jnp.broadcast_to(jnp.array([True, False]), (count, 2)),
    }
    keys = example_keys(step_key(0, 7), jnp.arange(count))
    noise = Noise(uniforms(example_keys(step_key(0, 8), jnp.arange(count))), keys)
    process = chains.make(kind, STEPS, VOCAB)
    tokens, times = jax.jit(lambda: pair(batch, noise, process, q_sample))()
    tokens, times = np.asarray(tokens), np.round(np.asarray(times) * STEPS).astype(int)
    assert (tokens[:, :, 1] == 1).all()

    size = states(kind)
    number = np.ravel_multi_index((*(times - 1), *tokens[:, :, 0]), (STEPS, STEPS, size, size))
    expected = count * pair_law(kind, q_sample).ravel()
    counts = np.bincount(number, minlength=expected.size)
    assert counts[expected == 0].sum() == 0
    rare = expected < 8
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum() + 1e-9)
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < chi2.isf(1e-6, df=len(counts) - 1)


def pair_law(kind, q_sample):
    """P(t, s, x_t, x_s) from x0 = 1, by Bayes' rule: float64[T, T, S, S]."""
    product, chain = (f(kind, STEPS, VOCAB) for f in (chains.products, chains.one_step))
    size = states(kind)
    law = np.zeros((STEPS, STEPS, size, size))
    for t, s in itertools.product(range(1, STEPS + 1), repeat=2):
        alone = np.outer(product[t][1], product[s][1])
        if q_sample == "multi_step" or s == t:
            chance = 1 / STEPS if q_sample == "multi_sample" else 1 / STEPS**2
            law[t - 1, s - 1] = chance * alone
        elif q_sample == "coupled" and s < t:
            stride = np.linalg.multi_dot([np.eye(size), *chain[s:t], np.eye(size)])
            law[t - 1, s - 1] = 2 / STEPS**2 * (product[s][1][:, None] * stride).T
    np.testing.assert_allclose(law.sum(), 1)
    return law


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradient_pulls_the_logits_of_noised_tokens_alone(smoothing, float64):
    """T [(1 - e) lambda (p - x0) + e (p - 1/V)] where x_t != x0 and valid, and 0 elsewhere."""
    process = chains.make("uniform", STEPS, VOCAB)
    x0, xt = np.array([[0, 1, 2, 0]]), np.array([[1, 1, 0, 2]])
    valid, t = np.array([[True, True, True, False]]), 2
    logits = np.random.default_rng(0).normal(size=(1, 4, VOCAB))

    def loss(hidden):
        readout = Readout(hidden, jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)
        batch = {"tokens": jnp.asarray(x0), "valid": jnp.asarray(valid)}
        at = jnp.asarray(xt), jnp.array([t / STEPS])
        return rdm_at(
            lambda *_: readout, {}, batch, *at, process, label_smoothing=smoothing
        ).loss.sum()

    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    pull = (1 - smoothing) * LAMBDA["linear"][t - 1] * (p - np.eye(VOCAB)[x0])
    pull = STEPS * (pull + smoothing * (p - 1 / VOCAB))
    noised = np.array([[True, False, True, False]])[..., None]
    got = jax.grad(loss)(jnp.asarray(logits))
    np.testing.assert_allclose(got, np.where(noised, pull, 0), rtol=1e-12, atol=1e-15)
