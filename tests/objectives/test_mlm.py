"""BERT's corruption and loss, and the pseudo-likelihood, against enumeration and statistics."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import chi2

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import example_keys, step_key, stratified
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.objectives import OBJECTIVES, mlm
from ddm_jax.objectives.signature import PSEUDO, Noise
from tests.enumerable import all_sequences, conditionals, exact_denoiser, random_joint
from tests.visible import visible_network, wrong_table

VOCAB, LENGTH = 3, 3
JOINT = random_joint(VOCAB, LENGTH)
PROCESS = Absorbing(SCHEDULES["log_linear"].make(), VOCAB)


def batch_of(tokens, valid=True):
    tokens = jnp.asarray(tokens)
    return {"tokens": tokens, "valid": jnp.broadcast_to(jnp.asarray(valid), tokens.shape)}


def noise_of(count):
    key, index = step_key(0, 3), jnp.arange(count)
    return Noise(stratified(key, index, count), example_keys(key, index))


def test_positions_are_selected_and_changed_at_the_rates_of_bert():
    """Chi-squares over 60,000 positions, each wrong once in 10^6: what becomes of a token 2."""
    x0 = jnp.full((1_000, 80), 2)
    valid = jnp.broadcast_to(jnp.arange(80) < 60, x0.shape)
    xt, selected = jax.jit(mlm.select, static_argnums=3)(noise_of(1_000).keys, x0, valid, 5)
    assert (xt[:, 60:] == 2).all()
    assert not selected[:, 60:].any()
    assert (selected | (xt == x0)).all()
    xt, selected = np.asarray(xt)[:, :60], np.asarray(selected)[:, :60]
    redrawn = 0.15 * 0.1 / 5  # to each of five tokens
    law = np.array([redrawn, redrawn, redrawn + 0.15 * 0.1, redrawn, redrawn, 0.15 * 0.8, 0.85])
    expected = xt.size * law
    counts = np.bincount(np.where(selected, xt, 6).reshape(-1), minlength=7)
    assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-6, df=6)
    # and each position on its own: the number that is selected in a sequence is binomial
    of_row = selected.sum(1)
    assert abs(of_row.var() / (60 * 0.15 * 0.85) - 1) < 5 * np.sqrt(2 / 1_000)


def test_draws_have_the_enumerated_mean():
    """20,000 draws against all that can become of three tokens: 5 standard errors."""
    count, x0 = 20_000, np.array([2, 0, 1])
    table = wrong_table(VOCAB, LENGTH)
    # not selected, masked, kept or redrawn as 0, 1, 2
    fates = np.array(list(itertools.product(range(6), repeat=LENGTH)))
    chance = np.array([0.85, 0.12, 0.015, 0.005, 0.005, 0.005])[fates].prod(1)
    xt = np.where(fates >= 3, fates - 3, x0)
    xt = jnp.asarray(np.where(fates == 1, VOCAB, xt))
    with jax.enable_x64(True):
        batch = batch_of(np.broadcast_to(x0, fates.shape))
        selected = jnp.asarray(fates > 0)
        loss_at = jax.jit(functools.partial(mlm.mlm_at, visible_network(table)))
        loss = loss_at({}, batch, xt, selected).loss
    exact = np.asarray(loss) @ chance
    np.testing.assert_allclose(chance.sum(), 1)
    apply = visible_network(np.float32(table))
    batch = batch_of(np.broadcast_to(x0, (count, LENGTH)))
    out = jax.jit(mlm.mlm, static_argnums=(0, 4))(apply, {}, batch, noise_of(count), PROCESS)
    stderr = float(out.loss.std()) / np.sqrt(count)
    assert abs(float(out.loss.mean()) - exact) < 5 * stderr
    assert out.bound is None
    assert OBJECTIVES["mlm"].estimates is None
    np.testing.assert_allclose(float(out.metrics["selected"].mean()), 0.15, atol=0.01)


def test_pseudo_likelihood_equals_its_enumeration():
    """Exactly, for every sequence: stratified u take each position equally often."""
    each = 4 * LENGTH
    x0 = all_sequences(VOCAB, LENGTH)
    one_hidden = np.where(np.eye(LENGTH, dtype=bool), VOCAB, x0[:, None])  # [27, L, L]
    p = conditionals(JOINT, one_hidden.reshape(-1, LENGTH)).reshape(27, LENGTH, LENGTH, VOCAB)
    i = np.arange(LENGTH)
    want = -np.log(p[np.arange(27)[:, None], i, i, x0]).sum(1)
    # padded in front, so that positions and tokens are not the same numbers
    tokens = np.pad(np.repeat(x0, each, axis=0), ((0, 0), (1, 0)), constant_values=1)
    valid = np.arange(LENGTH + 1) > 0
    with jax.enable_x64(True):
        inner, seen = exact_denoiser(JOINT), []

        def apply(params, tokens):
            seen.append(tokens)
            out = inner(params, tokens[:, 1:])
            hidden = jnp.pad(out.hidden, ((0, 0), (1, 0), (0, 0)))
            return type(out)(hidden, out.kernel, out.bias, out.vocab_size)

        u = jnp.tile((jnp.arange(each) + 0.5) / each, 27)
        noise = Noise(u, noise_of(1).keys)

        @jax.jit
        def run(batch, noise):
            return mlm.mlm_pseudo(apply, {}, batch, noise, PROCESS), seen.pop()

        out, given = run(batch_of(tokens, valid), noise)
    assert (given[:, 0] == 1).all()
    assert ((given == VOCAB).sum(1) == 1).all()
    got = np.asarray(out.bound).reshape(27, each).mean(1)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    assert OBJECTIVES["mlm_pseudo"].estimates == PSEUDO
    assert OBJECTIVES["mlm"].estimator == "mlm_pseudo"


def test_pseudo_likelihood_of_nothing_is_zero_and_the_last_u_is_a_position():
    batch = batch_of(np.zeros((2, LENGTH), int), np.array([[False] * LENGTH, [True] * LENGTH]))
    noise = Noise(jnp.full(2, np.nextafter(np.float32(1), np.float32(0))), noise_of(2).keys)
    run = jax.jit(mlm.mlm_pseudo, static_argnums=(0, 4))
    out = run(exact_denoiser(JOINT), {}, batch, noise, PROCESS)
    assert out.loss[0] == 0
    assert out.loss[1] > 0
