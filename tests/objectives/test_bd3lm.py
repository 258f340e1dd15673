"""Block diffusion against exact enumeration (vocabulary 3, length 4), AR, MDLM and the mask."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import ModelConfig
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.attention_masks import block_diffusion
from ddm_jax.diffusion.randomness import example_keys, step_key, stratified
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.models.network import make_network
from ddm_jax.models.readout import Readout
from ddm_jax.objectives import ar, bd3lm, radd
from ddm_jax.objectives.signature import Noise
from tests.enumerable import all_masks, all_sequences, random_joint
from tests.visible import exact_table, visible_network, wrong_table

VOCAB, LENGTH = 3, 4
SIZES = [1, 2, 4]
NODES, WEIGHTS = np.polynomial.legendre.leggauss(4)  # exact for the polynomials in t below
NODES, WEIGHTS = (NODES + 1) / 2, WEIGHTS / 2
JOINT = random_joint(VOCAB, LENGTH)
NLL = -np.log(JOINT.reshape(-1))
X0 = all_sequences(VOCAB, LENGTH)


def process(mask_id=VOCAB, eps=0.0):
    return Absorbing(SCHEDULES["log_linear"].make(eps=eps), mask_id)


def batch_of(tokens, valid=True):
    tokens = jnp.asarray(tokens)
    return {"tokens": tokens, "valid": jnp.broadcast_to(jnp.asarray(valid), tokens.shape)}


def noise_of(count, seed=0):
    key, index = step_key(seed, 5), jnp.arange(count)
    return Noise(stratified(key, index, count), example_keys(key, index))


def expected(loss_at, x0=X0, movable=(True,) * LENGTH, times=(NODES, WEIGHTS)):
    """E over t and the masks of movable positions, for every x0: float64[len(x0)].

    One t serves all blocks: the expectation is a sum over blocks, each with its own t.
    """
    masks = all_masks(LENGTH)
    masks = masks[~(masks & ~np.array(movable)).any(1)]
    masked, total = masks.sum(1), 0
    xt = jnp.asarray(np.where(masks, VOCAB, x0[:, None]).reshape(-1, LENGTH))
    batch = batch_of(np.repeat(x0, len(masks), axis=0), np.array(movable))
    for t, weight in zip(*times, strict=True):
        loss = loss_at(batch, xt, jnp.full(xt.shape, t))
        probability = t**masked * (1 - t) ** (sum(movable) - masked)
        total += weight * np.asarray(loss).reshape(len(x0), -1) @ probability
    return total


def block_loss(table, size):
    apply = visible_network(table)
    return jax.jit(lambda *given: bd3lm.bd3lm_at(apply, {}, *given, process(), size).loss)


@pytest.mark.parametrize("size", SIZES)
def test_exact_denoiser_attains_the_nll_of_every_sequence(float64, size):
    np.testing.assert_allclose(expected(block_loss(exact_table(JOINT), size)), NLL, rtol=1e-9)


def test_block_of_one_is_the_autoregressive_model_for_any_network(float64):
    table = wrong_table(VOCAB, LENGTH)
    causal = visible_network(table, ahead=1)
    want = jax.jit(lambda batch: ar.ar(causal, {}, batch, None, process()).loss)(batch_of(X0))
    np.testing.assert_allclose(expected(block_loss(table, 1)), want, rtol=1e-9)
    # and so it is in every single draw when all is masked
    masks = jnp.full(X0.shape, VOCAB)
    got = block_loss(table, 1)(batch_of(X0), masks, jnp.ones(X0.shape))
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_block_of_the_whole_length_is_mdlm_for_any_network(float64):
    table = wrong_table(VOCAB, LENGTH)
    apply = visible_network(table)

    @jax.jit
    def mdlm(batch, xt, t):
        return radd.t_dce_at(apply, {}, batch, xt, t[:, 0], process()).loss

    want = expected(mdlm)
    np.testing.assert_allclose(expected(block_loss(table, LENGTH)), want, rtol=1e-9)
    assert abs(expected(block_loss(table, 2)) - want).max() > 0.1


@pytest.mark.parametrize("size", SIZES)
def test_draws_have_the_enumerated_mean(size):
    """The mean of 20,000 draws lies within 5 standard errors (wrong once in 10^6) of the exact one.

    The draws of t stop at 1e-3, which the tolerance allows for; the last position is padding.
    """
    count, table = 20_000, wrong_table(VOCAB, LENGTH)
    movable = (True, True, True, False)
    x0 = X0[63:64]
    with jax.enable_x64(True):
        exact = expected(block_loss(table, size), x0, movable)[0]
    batch = batch_of(jnp.broadcast_to(x0, (count, LENGTH)), np.array(movable))
    apply = visible_network(np.float32(table))

    @jax.jit
    def run(batch, noise):
        seen = []

        def watched(params, tokens, **kwargs):
            seen.append(tokens)
            return apply(params, tokens, **kwargs)

        return bd3lm.bd3lm(watched, {}, batch, noise, process(), block_size=size), seen[0]

    out, seen = run(batch, noise_of(count))
    assert (seen[:, LENGTH - 1] == x0[0, -1]).all()
    assert (seen[:, :LENGTH] == VOCAB).any(0)[:3].all()
    stderr = float(out.loss.std()) / np.sqrt(count)
    assert abs(float(out.loss.mean()) - exact) < 5 * stderr + 2e-3 * exact
    np.testing.assert_array_equal(out.bound, out.loss)
    fraction = (seen[:, :LENGTH] == VOCAB).sum(1) / 3
    np.testing.assert_allclose(out.metrics["masked"], fraction, rtol=1e-6)


def test_clipping_moves_the_loss_and_not_the_bound():
    """The loss has the mean over t ~ U(0.4, 0.9), the bound that over all t; 5 standard errors."""
    count, table, low, high = 20_000, wrong_table(VOCAB, LENGTH), 0.4, 0.9
    x0 = X0[63:64]  # for which the two differ by 1.2 nats
    with jax.enable_x64(True):
        exact = block_loss(table, 2)
        inside = expected(exact, x0, times=(low + (high - low) * NODES, WEIGHTS))[0]
        everywhere = expected(exact, x0)[0]
    batch = batch_of(jnp.broadcast_to(x0, (count, LENGTH)))
    apply = visible_network(np.float32(table))
    clipped = functools.partial(bd3lm.bd3lm, block_size=2, clip_low=low, clip_high=high)
    out = jax.jit(clipped, static_argnums=(0, 4))(apply, {}, batch, noise_of(count), process())
    for value, exact in ((out.loss, inside), (out.bound, everywhere)):
        stderr = float(value.std()) / np.sqrt(count)
        assert abs(float(value.mean()) - exact) < 5 * stderr + 2e-3 * exact
    assert float(out.loss.std()) < 0.8 * float(out.bound.std())


def test_times_are_stratified_over_all_blocks_of_the_batch():
    """Each of the B J strata has one; and every block is as often in each quarter of (0, 1).

    Those are 1,000 of 4,000, within 5 standard deviations (27.4).
    """
    count, blocks = 4_000, 4
    noise = noise_of(count)
    u = np.asarray(bd3lm.block_uniforms(noise.keys, noise.u, blocks), np.float64)
    assert u.min() > 0
    assert u.max() < 1
    gaps = np.diff(np.sort(u.reshape(-1))) * count * blocks
    np.testing.assert_allclose(gaps, 1, atol=2e-3)
    for block in range(blocks):
        counts = np.bincount((u[:, block] * blocks).astype(int), minlength=blocks)
        assert (abs(counts - 1_000) < 137).all()


@functools.cache
def small_network():
    """A transformer of two layers, all of whose parameters are random, in float32."""
    config = ModelConfig(width=16, depth=2, heads=2, time="none")
    network = make_network(config, VOCAB)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(0)
    random = [jnp.asarray(rng.normal(size=x.shape) / 2, jnp.float32) for x in leaves]
    return jax.jit(network.apply), jax.tree.unflatten(tree, random)


def test_transformer_learns_nothing_of_its_own_block_or_later_ones():
    """Which of the 2L inputs change which of the L outputs: those of the mask, and no others."""
    length, size = 6, 2
    apply, params = small_network()
    x0 = np.random.default_rng(1).integers(0, VOCAB, length)
    both = np.concatenate([np.where(np.arange(length) % 2, VOCAB, x0), x0])
    changed = np.repeat(both[None], 1 + 2 * length, axis=0)
    changed[np.arange(1, 1 + 2 * length), np.arange(2 * length)] += np.where(both == 0, 1, -1)
    hidden = []

    def watched(*args, **kwargs):
        hidden.append(apply(*args, **kwargs).span(0, length).hidden)
        return apply(*args, **kwargs)

    batch = batch_of(changed[:, length:])
    xt, t = jnp.asarray(changed[:, :length]), jnp.ones((len(changed), length))
    bd3lm.bd3lm_at(watched, params, batch, xt, t, process(), size)
    moved = np.abs(hidden[0][1:] - hidden[0][0]).max(-1) > 0  # [input, output]
    block = np.arange(length) // size
    noised = block[:, None] == block
    clean = block[:, None] < block
    np.testing.assert_array_equal(moved, np.concatenate([noised, clean]))


def test_transformer_on_one_block_is_mdlm():
    apply, params = small_network()
    rng = np.random.default_rng(2)
    batch = batch_of(rng.integers(0, VOCAB, (5, 8)))
    xt = jnp.where(rng.random((5, 8)) < 0.5, VOCAB, batch["tokens"])
    t = jnp.asarray(rng.uniform(0.1, 1, 5), jnp.float32)
    want = radd.t_dce_at(apply, params, batch, xt, t, process()).loss
    t = jnp.repeat(t[:, None], 8, axis=1)
    got = bd3lm.bd3lm_at(apply, params, batch, xt, t, process(), 8).loss
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_training_and_sampling_see_the_same_prefix():
    """One pass over [x_t, x_0] is L / block_size block-causal passes over [clean blocks, x_t]."""
    apply, params = small_network()
    length, size = 8, 2
    rng = np.random.default_rng(3)
    x0 = rng.integers(0, VOCAB, (5, length))
    xt = np.where(rng.random(x0.shape) < 0.5, VOCAB, x0)
    both, positions = jnp.concatenate([xt, x0], 1), jnp.tile(jnp.arange(length), 2)
    attend = block_diffusion(length, size)
    block_causal = attend[length:, length:]  # the part of the clean tokens
    trained = apply(params, both, attend=attend, positions=positions)
    for start in range(0, length, size):
        x = np.where(np.arange(length) < start, x0, xt)
        sampled = apply(params, jnp.asarray(x), attend=block_causal)
        np.testing.assert_allclose(
            sampled.span(start, size).logits(), trained.span(start, size).logits(), atol=1e-5
        )


def test_clipping_costs_one_pass_when_compiled():
    """jit leaves out the pass of the bound in training, and that of the loss in evaluation."""
    kernel = jnp.ones((64, 64))

    def apply(params, tokens, **kwargs):
        hidden = tokens[..., None] * params @ kernel @ kernel
        return Readout(hidden, kernel, jnp.zeros(64), VOCAB)

    def flops(wanted, **clip):
        def run(params, batch, noise):
            out = bd3lm.bd3lm(apply, params, batch, noise, process(), block_size=2, **clip)
            return getattr(out, wanted).sum()

        args = jnp.ones(64), batch_of(np.zeros((4, 8), np.int32)), noise_of(4)
        return jax.jit(run).lower(*args).compile().cost_analysis()["flops"]

    unclipped = flops("loss")
    assert flops("loss", clip_low=0.4, clip_high=0.9) < 1.1 * unclipped
    assert flops("bound", clip_low=0.4, clip_high=0.9) < 1.1 * unclipped
