"""Block diffusion against exact enumeration (vocabulary 3, length 4), AR, MDLM and the mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import ModelConfig
from ddm_jax.diffusion.attention_masks import block_diffusion
from ddm_jax.models.network import make_network
from ddm_jax.models.readout import Readout
from ddm_jax.objectives import ar, bd3lm, radd
from tests.batch import batch_of, noise_of
from tests.masking import LENGTH, VOCAB, X0
from tests.objectives.blocks import PROCESS, block_loss, losses_of, over_times
from tests.visible import visible_network, wrong_table

WRONG = wrong_table(VOCAB, LENGTH)


def expected(loss_at):
    """E over t and masks of a loss by (table, batch, xt, t), for every x0, of the wrong network."""
    return over_times(losses_of(loss_at, WRONG))


def test_block_of_one_is_the_autoregressive_model_for_any_network(float64):
    @jax.jit
    def from_the_left(table, batch):
        return ar.ar(visible_network(table, ahead=1), {}, batch, None, PROCESS).loss

    want = from_the_left(WRONG, batch_of(X0))
    np.testing.assert_allclose(expected(block_loss(1)), want, rtol=1e-9)
    # and so it is in every single draw when all is masked
    got = block_loss(1)(WRONG, batch_of(X0), np.full_like(X0, VOCAB), np.ones(X0.shape))
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_block_of_the_whole_length_is_mdlm_for_any_network(float64):
    @jax.jit
    def mdlm(table, batch, xt, t):
        return radd.t_dce_at(visible_network(table), {}, batch, xt, t[:, 0], PROCESS).loss

    want = expected(mdlm)
    np.testing.assert_allclose(expected(block_loss(LENGTH)), want, rtol=1e-9)
    assert abs(expected(block_loss(2)) - want).max() > 0.1


def test_times_are_stratified_over_all_blocks_of_the_batch():
    """Each of the B J strata has one; and every block is as often in each quarter of (0, 1).

    Those are 1,000 of 4,000, within 5 standard deviations (27.4).
    """
    count, blocks = 4_000, 4
    noise = noise_of(count)
    drawn = jax.jit(bd3lm.block_uniforms, static_argnums=2)(noise.keys, noise.u, blocks)
    u = np.asarray(drawn, np.float64)
    assert u.min() > 0
    assert u.max() < 1
    gaps = np.diff(np.sort(u.reshape(-1))) * count * blocks
    np.testing.assert_allclose(gaps, 1, atol=2e-3)
    for block in range(blocks):
        counts = np.bincount((u[:, block] * blocks).astype(int), minlength=blocks)
        assert (abs(counts - 1_000) < 137).all()


NETWORK = make_network(ModelConfig(width=16, depth=2, heads=2, time="none"), VOCAB)


@functools.cache
def small_params():
    """Random float32 ones of a transformer of two layers."""
    shapes = jax.eval_shape(NETWORK.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape) / 2), shapes)


def test_transformer_learns_nothing_of_its_own_block_or_later_ones():
    """Which of the 2L inputs change which of the L outputs: those of the mask, and no others."""
    length, size = 6, 2
    x0 = np.random.default_rng(1).integers(0, VOCAB, length)
    both = np.concatenate([np.where(np.arange(length) % 2, VOCAB, x0), x0])
    changed = np.repeat(both[None], 1 + 2 * length, axis=0)
    changed[np.arange(1, 1 + 2 * length), np.arange(2 * length)] += np.where(both == 0, 1, -1)

    @jax.jit
    def run(params, changed):
        hidden = []

        def watched(*args, **kwargs):
            out = NETWORK.apply(*args, **kwargs)
            hidden.append(out.span(0, length).hidden)
            return out

        batch, t = batch_of(changed[:, length:]), jnp.ones((len(changed), length))
        bd3lm.bd3lm_at(watched, params, batch, changed[:, :length], t, PROCESS, size)
        return hidden[0]

    hidden = np.asarray(run(small_params(), changed))
    moved = np.abs(hidden[1:] - hidden[0]).max(-1) > 0  # [input, output]
    block = np.arange(length) // size
    noised = block[:, None] == block
    clean = block[:, None] < block
    np.testing.assert_array_equal(moved, np.concatenate([noised, clean]))


def test_transformer_on_one_block_is_mdlm():
    rng = np.random.default_rng(2)
    x0 = rng.integers(0, VOCAB, (5, 8))
    xt = np.where(rng.random((5, 8)) < 0.5, VOCAB, x0)
    t = np.float32(rng.uniform(0.1, 1, 5))

    @jax.jit
    def both(params, x0, xt, t):
        batch, whole = batch_of(x0), jnp.repeat(t[:, None], 8, axis=1)
        got = bd3lm.bd3lm_at(NETWORK.apply, params, batch, xt, whole, PROCESS, 8)
        return got.loss, radd.t_dce_at(NETWORK.apply, params, batch, xt, t, PROCESS).loss

    got, want = both(small_params(), x0, xt, t)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_training_and_sampling_see_the_same_prefix():
    """One pass over [x_t, x_0] is L / block_size block-causal passes over [clean blocks, x_t]."""
    length, size = 8, 2
    rng = np.random.default_rng(3)
    x0 = rng.integers(0, VOCAB, (5, length))
    xt = np.where(rng.random(x0.shape) < 0.5, VOCAB, x0)
    starts = np.arange(0, length, size)
    prefixes = np.where(np.arange(length) < starts[:, None, None], x0, xt)

    @jax.jit
    def run(params, x0, xt, prefixes):
        attend = block_diffusion(length, size)
        positions = jnp.tile(jnp.arange(length), 2)
        both = jnp.concatenate([xt, x0], 1)
        trained = NETWORK.apply(params, both, attend=attend, positions=positions)
        block_causal = attend[length:, length:]  # the part of the clean tokens
        sampled = NETWORK.apply(params, prefixes.reshape(-1, length), attend=block_causal)
        return trained.span(0, length).logits(), sampled.logits()

    trained, sampled = jax.device_get(run(small_params(), x0, xt, prefixes))
    for start, logits in zip(starts, sampled.reshape(-1, *trained.shape), strict=True):
        now = slice(start, start + size)
        np.testing.assert_allclose(logits[:, now], trained[:, now], atol=1e-5)


@pytest.mark.slow
def test_clipping_costs_one_pass_when_compiled():
    """jit leaves out the pass of the bound in training, and that of the loss in evaluation."""
    kernel = jnp.ones((64, 64))

    def apply(params, tokens, **kwargs):
        hidden = tokens[..., None] * params @ kernel @ kernel
        return Readout(hidden, kernel, jnp.zeros(64), VOCAB)

    def flops(wanted, **clip):
        def run(params, batch, noise):
            out = bd3lm.bd3lm(apply, params, batch, noise, PROCESS, block_size=2, **clip)
            return getattr(out, wanted).sum()

        args = jnp.ones(64), batch_of(np.zeros((4, 8), np.int32)), noise_of(4)
        return jax.jit(run).lower(*args).compile().cost_analysis()["flops"]

    unclipped = flops("loss")
    assert flops("loss", clip_low=0.4, clip_high=0.9) < 1.1 * unclipped
    assert flops("bound", clip_low=0.4, clip_high=0.9) < 1.1 * unclipped
