"""RADD's four losses against exact enumeration: vocabulary 3, length 4, every mask, every x0."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import example_keys, step_key, stratified
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.objectives import OBJECTIVES, radd
from ddm_jax.objectives.signature import Noise
from tests.enumerable import (
    all_masks,
    all_sequences,
    exact_denoiser,
    random_joint,
    wrong_denoiser,
)

VOCAB, LENGTH = 3, 4
RADD = [name for name in OBJECTIVES if name.startswith("radd_")]
NODES, WEIGHTS = np.polynomial.legendre.leggauss(8)  # exact for the polynomials in lambda below
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2
JOINT = random_joint(VOCAB, LENGTH)
NLL = -np.log(JOINT.reshape(-1))


def process(eps=0.0):
    return Absorbing(SCHEDULES["log_linear"].make(eps=eps), mask_id=VOCAB)


def losses_at(loss_at, apply, level, process):
    """Loss of every x0 under every mask at one noise level: float64[81, 16]."""
    x0, masks = all_sequences(VOCAB, LENGTH), all_masks(LENGTH)
    xt = np.where(masks, VOCAB, x0[:, None]).reshape(-1, LENGTH)
    tokens = np.repeat(x0, len(masks), axis=0)
    batch = {"tokens": jnp.asarray(tokens), "valid": jnp.ones(tokens.shape, bool)}
    level = jnp.broadcast_to(level, len(xt))
    loss = loss_at(apply, {}, batch, jnp.asarray(xt), level, process).loss
    return np.asarray(loss).reshape(len(x0), len(masks))


def over_time(loss_at, apply, schedule_eps=0.0):
    """E over t ~ U(0, 1) and masks drawn with probability 1 - alpha(t), for every x0."""
    masked, total = all_masks(LENGTH).sum(1), 0
    for node, weight in zip(NODES, WEIGHTS, strict=True):
        lam = (1 - schedule_eps) * node
        probability = lam**masked * (1 - lam) ** (LENGTH - masked)
        total += weight * losses_at(loss_at, apply, node, process(schedule_eps)) @ probability
    return total


def over_k(apply):
    """E over k ~ U{1..n} and k-subsets, for every x0."""
    masked, total = all_masks(LENGTH).sum(1), 0
    for k in range(1, LENGTH + 1):
        subset = (masked == k) / (masked == k).sum()
        total += losses_at(radd.any_order_at, apply, k, process()) @ subset / LENGTH
    return total


def expectations(apply):
    with jax.enable_x64(True):
        return {
            "radd_t_dse": over_time(radd.t_dse_at, apply),
            "radd_t_dce": over_time(radd.t_dce_at, apply),
            "radd_lambda_dce": over_time(radd.lambda_dce_at, apply),
            "radd_ao": over_k(apply),
        }


@pytest.mark.parametrize("name", RADD)
def test_exact_denoiser_attains_the_nll_of_every_sequence(name):
    with jax.enable_x64(True):
        apply = exact_denoiser(JOINT)
    np.testing.assert_allclose(expectations(apply)[name], NLL, rtol=1e-9)


def test_four_losses_agree_in_expectation_for_any_denoiser():
    with jax.enable_x64(True):
        apply = wrong_denoiser(VOCAB, LENGTH)
    values = expectations(apply)
    for name in RADD:
        np.testing.assert_allclose(values[name], values["radd_ao"], rtol=1e-9, err_msg=name)
    assert (JOINT.reshape(-1) * (values["radd_ao"] - NLL)).sum() > 0.1  # KL > 0: it is wrong


def test_eps_of_the_schedule_moves_the_time_losses_by_eps():
    with jax.enable_x64(True):
        apply = exact_denoiser(JOINT)
        loose = over_time(radd.t_dce_at, apply, schedule_eps=1e-3)
    missing = NLL - loose
    assert (missing > 0).all()
    assert (missing < 1e-3 * 2 * LENGTH * NLL.max()).all()


@pytest.mark.parametrize("name", RADD)
def test_draws_have_the_enumerated_mean(name):
    """The mean of 40,000 draws lies within 5 standard errors (wrong once in 10^6) of the exact one.

    The draws of t stop at 1e-3, which the tolerance allows for.
    """
    count = 40_000
    with jax.enable_x64(True):
        exact = expectations(wrong_denoiser(VOCAB, LENGTH))[name]
    x0 = 17
    tokens = jnp.broadcast_to(all_sequences(VOCAB, LENGTH)[x0], (count, LENGTH))
    # a fifth position that is padding: never masked, never counted
    apply = wrong_denoiser(VOCAB, LENGTH)

    def padded_apply(params, tokens):
        assert_unmasked.append(bool((tokens[:, -1] == 0).all()))
        out = apply(params, tokens[:, :-1])
        hidden = jnp.pad(out.hidden, ((0, 0), (0, 1), (0, 0)))
        return type(out)(hidden, out.kernel, out.bias, out.vocab_size)

    assert_unmasked = []
    batch = {
        "tokens": jnp.pad(tokens, ((0, 0), (0, 1))),
        "valid": jnp.arange(LENGTH + 1)[None] < jnp.full((count, 1), LENGTH),
    }
    key, index = step_key(0, 5), jnp.arange(count)
    noise = Noise(stratified(key, index, count), example_keys(key, index))
    out = OBJECTIVES[name].loss(padded_apply, {}, batch, noise, process(eps=1e-3))
    assert all(assert_unmasked)
    stderr = float(out.loss.std()) / np.sqrt(count)
    slack = 2e-3 * exact[x0]
    assert abs(float(out.loss.mean()) - exact[x0]) < 5 * stderr + slack
    np.testing.assert_array_equal(out.bound, out.loss)


def test_any_order_masks_every_count_equally_often():
    """k = 1..n from stratified u: each count within one of B / n."""
    batch = {"tokens": jnp.zeros((100, LENGTH), int), "valid": jnp.ones((100, LENGTH), bool)}
    key, index = step_key(0, 0), jnp.arange(100)
    noise = Noise(stratified(key, index, 100), example_keys(key, index))
    out = radd.any_order(wrong_denoiser(VOCAB, LENGTH), {}, batch, noise, process())
    counts = np.bincount(np.round(np.asarray(out.metrics["masked"]) * LENGTH).astype(int))
    assert counts[0] == 0
    assert (abs(counts[1:] - 25) <= 1).all()
