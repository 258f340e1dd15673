"""UDLM against enumeration (vocabulary 3, length 2), and its integrand against its definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.randomness import example_keys, step_key, stratified
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.objectives.signature import Noise
from ddm_jax.objectives.udlm import udlm, udlm_at
from tests.enumerable import all_sequences, random_joint
from tests.plug_in import (
    assert_gradient,
    expected,
    leave_one_out,
    loss_of,
    said,
    single_tokens,
    step_kl,
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


def bound(denoiser_at, **options):
    return expected(udlm_at, process(), matrix_at, denoiser_at, VOCAB, LENGTH, **options)


def exact(matrix):
    return leave_one_out(JOINT, matrix)


def test_exact_denoiser_attains_the_nll_of_every_sequence():
    np.testing.assert_allclose(bound(exact), NLL, rtol=1e-8)


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
            out = loss_of(udlm_at, process(), np.log(p), x0, xt, np.full(len(x0), t))
            ours = np.asarray(out.loss)
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
    continuous = expected(udlm_at, process(), matrix_at, lambda m: p, VOCAB, 1)
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
    losses, grads = [], []
    for dtype in ("float32", "float64"):
        with jax.enable_x64(dtype == "float64"):
            batch = {"tokens": jnp.asarray(x0), "valid": jnp.ones(x0.shape, bool)}
            at = jnp.asarray(t, dtype)

            def total(logits, batch=batch, at=at):
                loss = udlm_at(said(logits), {}, batch, xt, at, process(1e-3, vocab)).loss
                return loss.sum(), loss

            grad, loss = jax.jit(jax.grad(total, has_aux=True))(jnp.asarray(logits, dtype))
            losses.append(np.asarray(loss))
            grads.append(np.asarray(grad))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4, atol=1e-5)
    assert (abs(grads[0] - grads[1]).sum((1, 2)) < 1e-3 * abs(grads[1]).sum((1, 2)) + 1e-5).all()


def test_prior_kl_is_that_of_the_last_marginal():
    q = uniform_matrix(1 - 1e-3, 7)[2]
    np.testing.assert_allclose(process(1e-3, 7).prior_kl(), (q * np.log(q * 7)).sum(), rtol=1e-4)
    assert process(0.0, 7).prior_kl() == 0


def test_draws_have_the_enumerated_mean():
    """The mean of 40,000 draws lies within 5 standard errors (wrong once in 10^6) of the exact one.

    A third position is padding: never corrupted, never counted, whatever the network says there.
    """
    count, x0 = 40_000, 5
    p = wrong_table(VOCAB, LENGTH, VOCAB)
    table = jnp.log(jnp.float32(p))

    def apply(params, tokens, sigma):
        said_here = table[tokens[:, 0] * VOCAB + tokens[:, 1]]
        said_here = jnp.where(tokens[:, 2, None, None] == 0, said_here, jnp.nan)
        padded = jnp.pad(said_here, ((0, 0), (0, 1), (0, 0)), constant_values=-3.0)
        return said(padded)(params, tokens, sigma)

    tokens = np.append(all_sequences(VOCAB, LENGTH)[x0], 0)
    batch = {
        "tokens": jnp.broadcast_to(jnp.asarray(tokens), (count, LENGTH + 1)),
        "valid": jnp.broadcast_to(jnp.arange(LENGTH + 1) < LENGTH, (count, LENGTH + 1)),
    }
    key, index = step_key(0, 5), jnp.arange(count)
    noise = Noise(stratified(key, index, count), example_keys(key, index))
    out = jax.jit(lambda batch, noise: udlm(apply, {}, batch, noise, process(1e-3)))(batch, noise)
    exact_mean = bound(lambda m: p, start=1e-3, field="loss")[x0] / (1 - 1e-3)
    stderr = float(out.loss.std()) / np.sqrt(count)
    assert abs(float(out.loss.mean()) - exact_mean) < 5 * stderr + 2e-3 * exact_mean
    np.testing.assert_allclose(out.bound - out.loss, LENGTH * process(1e-3).prior_kl(), atol=2e-4)
    assert float(out.metrics["noised"].mean()) == pytest.approx(1 / 2 * (1 - 1 / VOCAB), abs=0.01)


def test_gradient_equals_finite_differences(float64):
    assert_gradient(udlm_at, process(1e-3), xt=[0, 1, 1], t=0.3)
