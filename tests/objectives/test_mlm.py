"""BERT's corruption and loss, and the pseudo-likelihood, against enumeration and statistics."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import chi2

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.objectives import OBJECTIVES, mlm
from ddm_jax.objectives.signature import PSEUDO, Noise
from tests.batch import batch_of, noise_of
from tests.enumerable import all_sequences, conditionals, random_joint
from tests.objectives.enumeration import said
from tests.visible import exact_table

VOCAB, LENGTH = 3, 3
JOINT = random_joint(VOCAB, LENGTH)
PROCESS = Absorbing(SCHEDULES["log_linear"].make(), VOCAB)


def test_positions_are_selected_and_changed_at_the_rates_of_bert():
    """Chi-squares over 60,000 positions, each wrong once in 10^6: what becomes of a token 2."""
    x0 = np.full((1_000, 80), 2)
    valid = np.broadcast_to(np.arange(80) < 60, x0.shape)
    drawn = jax.jit(mlm.select, static_argnums=3)(noise_of(1_000).keys, x0, valid, 5)
    xt, selected = jax.device_get(drawn)
    assert (xt[:, 60:] == 2).all()
    assert not selected[:, 60:].any()
    assert (selected | (xt == x0)).all()
    xt, selected = xt[:, :60], selected[:, :60]
    redrawn = 0.15 * 0.1 / 5  # to each of five tokens
    law = np.array([redrawn, redrawn, redrawn + 0.15 * 0.1, redrawn, redrawn, 0.15 * 0.8, 0.85])
    expected = xt.size * law
    counts = np.bincount(np.where(selected, xt, 6).reshape(-1), minlength=7)
    assert ((counts - expected) ** 2 / expected).sum() < chi2.isf(1e-6, df=6)
    # and each position on its own: the number that is selected in a sequence is binomial
    of_row = selected.sum(1)
    assert abs(of_row.var() / (60 * 0.15 * 0.85) - 1) < 5 * np.sqrt(2 / 1_000)


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
    u = np.tile((np.arange(each) + 0.5) / each, 27)
    table = exact_table(JOINT)

    @jax.jit
    def run(batch, noise):
        seen = []

        def apply(params, tokens):
            seen.append(tokens)
            number = (tokens[:, 1:] * (VOCAB + 1) ** np.arange(LENGTH)[::-1]).sum(1)
            answers = jnp.asarray(table)[number]
            return said(jnp.pad(answers, ((0, 0), (1, 0), (0, 0))))()

        return mlm.mlm_pseudo(apply, {}, batch, noise, PROCESS), seen[0]

    with jax.enable_x64(True):
        noise = Noise(u, noise_of(1).keys)
        out, given = jax.device_get(run(batch_of(tokens, valid), noise))
    assert (given[:, 0] == 1).all()
    assert ((given == VOCAB).sum(1) == 1).all()
    got = out.bound.reshape(27, each).mean(1)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    assert OBJECTIVES["mlm_pseudo"].estimates == PSEUDO
    assert OBJECTIVES["mlm"].estimator == "mlm_pseudo"


def test_pseudo_likelihood_of_nothing_is_zero_and_the_last_u_is_a_position():
    batch = batch_of(np.zeros((2, LENGTH), int), np.array([[False] * LENGTH, [True] * LENGTH]))
    noise = Noise(np.full(2, np.nextafter(np.float32(1), np.float32(0))), noise_of(2).keys)

    @jax.jit
    def run(batch, noise):
        apply = said(jnp.zeros((2, LENGTH, VOCAB)))
        return mlm.mlm_pseudo(apply, {}, batch, noise, PROCESS).loss

    loss = np.asarray(run(batch, noise))
    assert loss[0] == 0
    assert loss[1] > 0
