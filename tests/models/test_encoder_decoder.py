"""What is the encoder-decoder's own: positions, time, beginning, size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import ModelConfig
from ddm_jax.models.network import make_network, padded_vocab
from ddm_jax.training.optimizer import decay_mask
from tests.models.small import random_params

VOCAB, LENGTH = 50, 6
SMALL = {"kind": "encoder_decoder", "width": 32, "depth": 2, "heads": 4, "max_length": 12}


@functools.cache
def small(**options):
    """A network and random weights."""
    network = make_network(ModelConfig(**{"time": "none"} | SMALL | options), VOCAB)
    return network, random_params(network)


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.random.default_rng(seed).integers(0, VOCAB, (2, 2, LENGTH)))


@functools.partial(jax.jit, static_argnums=0)
def compiled(network, params, source, x, sigma=None, **given):
    memory = network.encode(params, source, jnp.ones(source.shape, bool))
    return network.apply(params, x, sigma, memory=memory, **given).hidden


def hidden(*given, **rest):
    return np.asarray(compiled(*given, **rest))


def test_tokens_that_carry_their_positions_may_come_in_any_order():
    network, params = small()
    source, x = batch()
    run = functools.partial(hidden, network)
    order = np.random.default_rng(0).permutation(LENGTH)
    in_order = run(params, source, x)
    shuffled = run(params, source, x[:, order], positions=order)
    np.testing.assert_allclose(shuffled, in_order[:, order], atol=1e-5)
    assert np.abs(run(params, source, x[:, order]) - in_order[:, order]).max() > 1e-2


def test_time_is_a_linear_map_of_sinusoids_added_to_the_input():
    """Hence it is the same as a change of the fusion's bias."""
    network, params = small(time="input")
    source, x = batch()
    t, width = 3.0, SMALL["width"]
    at = hidden(network, params, source, x, np.full(2, t))
    angle = t * 10_000.0 ** (-np.arange(width // 2) / (width // 2 - 1))
    waves = np.concatenate([np.sin(angle), np.cos(angle)])
    time = jax.device_get(params["time"])
    bias = np.asarray(params["decoder"]["fusion"]["bias"])
    bias = np.float32(bias + waves @ time["kernel"] + time["bias"])
    decoder = params["decoder"] | {
        "fusion": {"kernel": params["decoder"]["fusion"]["kernel"], "bias": bias}
    }
    untimed = {k: v for k, v in params.items() if k != "time"} | {"decoder": decoder}
    want = hidden(small()[0], untimed, source, x)
    np.testing.assert_allclose(at, want, atol=1e-5)


@pytest.mark.slow
def test_remat_changes_no_gradient():
    source, x = batch()

    def gradient(remat: str):
        network = make_network(ModelConfig(**SMALL, time="none", remat=remat), VOCAB)

        def loss(params):
            memory = network.encode(params, source, jnp.ones(source.shape, bool))
            out = network.apply(params, x, memory=memory)
            return jnp.sin(out.hidden).sum() + jnp.sin(memory.length_logits).sum()

        return jax.jit(jax.grad(loss))(small()[1])

    close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, gradient("full"), gradient("none"))


@pytest.mark.slow
def test_it_begins_as_bert_and_uniform_over_the_vocabulary():
    network = make_network(ModelConfig(**SMALL | {"width": 128}, time="input"), VOCAB)
    params = jax.device_get(jax.jit(network.init)(jax.random.key(0)))
    assert not params.pop("head")["kernel"].any()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if path[-1].key == "bias":
            assert not leaf.any()
        elif path[-1].key == "scale":
            assert (leaf == 1).all()
        else:
            spread = 0.02 / np.sqrt(2 * leaf.size)  # of the estimate, one standard deviation
            assert abs(leaf.std() - 0.02) < 5 * spread, path
            assert abs(leaf.mean()) < 5 * 0.02 / np.sqrt(leaf.size), path
    layers = params["encoder"]["blocks"]["qkv"]["kernel"]
    assert (layers[0] != layers[1]).mean() > 0.99


def test_weight_decay_is_of_all_but_biases_and_norms():
    network, _ = small(time="input")
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    decayed = jax.tree_util.tree_leaves_with_path(decay_mask(shapes))
    assert {path[-1].key for path, of in decayed if not of} == {"bias", "scale"}
    assert {path[-1].key for path, of in decayed if of} == {"kernel", "embedding"}


@pytest.mark.parametrize("tied", [True, False])
def test_size_of_the_network_for_iwslt(tied):
    """Width 512, feed-forward 1,024, 6 layers a side: the published runs' for IWSLT14 De-En."""
    vocab, d, f, layers, lengths = 10_000, 512, 1024, 6, 256
    config = ModelConfig(
        kind="encoder_decoder",
        width=d,
        depth=layers,
        heads=4,
        mlp_ratio=2,
        time="input",
        max_length=lengths,
        tied_head=tied,
    )
    rows = padded_vocab(vocab)
    linear = d * d + d
    layer = 4 * linear + 2 * d * f + f + d + 2 * 2 * d  # q, k, v, out; MLP; two norms
    cross = 4 * linear + 2 * d
    fusion = 2 * d * d + d
    want = layers * (2 * layer + cross) + 2 * (fusion + lengths * d) + linear  # the time
    want += rows * d + lengths * d + rows + (0 if tied else rows * d)
    shapes = jax.eval_shape(make_network(config, vocab).init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == want
