"""RDM's loss against exact enumeration: vocabulary 3, length 2, every x_t, every t; its pairs."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from ddm_jax.diffusion.randomness import example_keys, step_key, uniforms
from ddm_jax.objectives.rdm import WEIGHTINGS, pair, rdm_at
from tests import chains, masking
from tests.batch import batch_of, noise_of
from tests.objectives.enumeration import VOCAB, said
from tests.objectives.steps import (
    LAMBDA,
    STEPS,
    everything,
    process_of,
    rdm_answers,
    rdm_losses,
    states,
)
from tests.visible import wrong_table

KINDS = ("absorbing", "uniform")


@functools.partial(jax.jit, static_argnums=0)
def losses_of(process, answers, batch, xt, t, smoothing):
    """LossOutput of each weighting."""
    given = said(answers), {}, batch, xt, t, process
    return {name: rdm_at(*given, name, smoothing) for name in WEIGHTINGS}


@pytest.mark.parametrize("kind", KINDS)
def test_loss_at_every_state_is_the_formula(kind, float64):
    """Every weighting, t = 1 and t = T among the times, with and without smoothing."""
    assert set(WEIGHTINGS) == set(LAMBDA)
    every = everything(kind)
    (step, _, state), (x0, xt) = every.rows, every.tokens
    given = rdm_answers(kind)[step, state], batch_of(x0), xt, every.levels[step]
    for smoothing in (0.0, 0.1):
        found = jax.device_get(losses_of(process_of(kind), *given, smoothing))
        for weighting, out in found.items():
            np.testing.assert_allclose(out.loss, rdm_losses(kind, weighting, smoothing), rtol=1e-12)
            np.testing.assert_allclose(out.metrics["noised"], (xt != x0).mean(1), rtol=1e-6)
            assert out.bound is None


def test_reciprocal_weights_without_smoothing_are_the_bound_in_steps(float64):
    """E over t and masks, of a wrong denoiser, against KL of explicit posteriors, for every x0."""
    times = np.arange(1, STEPS + 1) / STEPS
    process = chains.make("absorbing", STEPS, masking.VOCAB)
    tokens, xt = masking.every_corruption(STEPS)
    log_p = masking.answers(wrong_table(masking.VOCAB, masking.LENGTH))
    answers = np.tile(log_p.reshape(-1, *log_p.shape[2:]), (STEPS, 1, 1))
    t = np.repeat(times, log_p.shape[0] * log_p.shape[1])
    loss = losses_of(process, answers, batch_of(tokens), xt, t, 0.0)["reciprocal"].loss
    loss = np.asarray(loss).reshape(STEPS, len(masking.X0), len(masking.MASKS))
    mean = (masking.even_mask_law(times) * loss).sum(-1).mean(0)
    alpha = np.broadcast_to(1 - np.append(0, times)[:, None], (STEPS + 1, masking.VOCAB))
    np.testing.assert_allclose(mean, masking.bound_in_steps(alpha, log_p), rtol=1e-9)


@functools.partial(jax.jit, static_argnums=0)
def independent_uniforms(count):
    return uniforms(example_keys(step_key(0, 8), jnp.arange(count)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("q_sample", ["multi_step", "multi_sample", "coupled"])
def test_pairs_of_corruptions_have_the_law_of_explicit_matrices(kind, q_sample):
    """The joint law of both times and tokens; chi-square, rejects the right law once in 10^6."""
    count = 20_000
    batch = batch_of(np.ones((count, 2), int), [True, False])
    process = chains.make(kind, STEPS, VOCAB)
    # independent times, for the chi-square
    noise = dataclasses.replace(noise_of(count), u=independent_uniforms(count))
    run = jax.jit(lambda batch, noise: pair(batch, noise, process, q_sample))
    tokens, times = jax.device_get(run(batch, noise))
    times = np.round(times * STEPS).astype(int)
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
    x0, xt = np.array([[0, 1, 2, 0]]), np.array([[1, 1, 0, 2]])
    batch, t = batch_of(x0, np.array([[True, True, True, False]])), 2
    logits = np.random.default_rng(0).normal(size=(1, 4, VOCAB))
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    pull = (1 - smoothing) * LAMBDA["linear"][t - 1] * (p - np.eye(VOCAB)[x0])
    pull = STEPS * (pull + smoothing * (p - 1 / VOCAB))
    noised = np.array([[True, False, True, False]])[..., None]
    got = gradient(logits, batch, xt, np.array([t / STEPS]), smoothing)
    np.testing.assert_allclose(got, np.where(noised, pull, 0), rtol=1e-12, atol=1e-15)


@jax.jit
@jax.grad
def gradient(logits, batch, xt, t, smoothing):
    process = chains.make("uniform", STEPS, VOCAB)
    given = said(logits), {}, batch, xt, t, process
    return rdm_at(*given, label_smoothing=smoothing).loss.sum()
