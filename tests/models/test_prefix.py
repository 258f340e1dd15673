"""A prefix network is one sequence, source before target, through the network of text."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import ModelConfig
from ddm_jax.models.network import make_network
from tests.models.small import random_params

VOCAB, SOURCE, TARGET = 50, 7, 8
SHIFT = VOCAB + 1  # beyond the mask there is padding up to 128, of which nothing is read
SOURCES, TARGETS = (4, 7), (8, 3)  # real tokens of each example
SMALL = ModelConfig(kind="prefix", width=32, depth=2, heads=4, max_length=20, time="none")
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


@functools.cache
def networks(time: str):
    """The prefix network, that of text with the same weights, and these for both."""
    config = dataclasses.replace(SMALL, time=time)
    prefix, text = (
        make_network(dataclasses.replace(config, kind=kind), VOCAB) for kind in ("prefix", "lm")
    )
    params = random_params(prefix)
    rest = {k: v for k, v in params.items() if k not in ("length", "segment")}
    # ids from SHIFT on are the tokens of a source: the same embeddings, and the segment's
    table = np.array(rest["embed"]["embedding"])
    table[SHIFT : SHIFT + VOCAB] = table[:VOCAB] + np.asarray(params["segment"])
    return prefix, text, params, rest | {"embed": {"embedding": table}}


def batch():
    """Source, its mask, target, its mask, sigma."""
    random = np.random.default_rng(0)
    source, x = (random.integers(0, VOCAB, (2, n)) for n in (SOURCE, TARGET))
    valid = np.arange(SOURCE) < np.array(SOURCES)[:, None]
    seen = np.arange(TARGET) < np.array(TARGETS)[:, None]
    return source, valid, x, seen, np.array([0.5, 3.0], np.float32)


@functools.cache
def as_text(time: str):
    """`apply` of the network of text, compiled, that keeps the cache."""
    return jax.jit(functools.partial(networks(time)[1].apply, keep=True))


@functools.cache
def through_memory(time: str, attend: str | None = None):
    prefix, _, params, _ = networks(time)

    @jax.jit
    def run(source, valid, x, seen, sigma):
        memory = prefix.encode(params, source, valid)
        return memory, prefix.apply(params, x, sigma, memory=memory, seen=seen, attend=attend)

    return jax.device_get(run(*batch()))


@pytest.mark.parametrize("time", ["none", pytest.param("constant", marks=pytest.mark.slow)])
@pytest.mark.parametrize("attend", [None, "causal"])
def test_it_is_one_sequence_whose_source_sees_only_itself(time, attend):
    """Without padding; both have their positions from 0."""
    _, _, own, params = networks(time)
    source, _, x, _, _ = batch()
    memory, readout = through_memory(time, attend)
    for i, (s, n) in enumerate(zip(SOURCES, TARGETS, strict=True)):
        k = np.arange(s + n)
        q = k[:, None]
        sees = (k < s) | ((q >= s) & ((attend is None) | (k <= q)))
        joint = np.concatenate([source[i, :s] + SHIFT, x[i, :n]])[None]
        at = np.concatenate([np.arange(s), np.arange(n)])
        whole = jax.device_get(as_text(time)(params, joint, attend=sees, positions=at))
        close(readout.hidden[i, :n], whole.hidden[0, s:])
        close(memory.v[:, i, :s], whole.cache[1][:, 0, :s])
        mean = whole.hidden[0, :s].mean(axis=0)
        close(memory.length_logits[i], mean @ np.asarray(own["length"]["kernel"]))


@pytest.mark.slow
def test_its_source_is_at_time_zero():
    _, _, _, params = networks("adaln")
    source, zero = batch()[0], np.zeros(1, np.float32)
    memory, _ = through_memory("adaln")
    for i, s in enumerate(SOURCES):
        k, v = jax.device_get(as_text("adaln")(params, source[i : i + 1, :s] + SHIFT, zero).cache)
        close(memory.k[:, i, :s], k[:, 0])
        close(memory.v[:, i, :s], v[:, 0])


def test_without_a_source_it_is_the_network_of_text():
    prefix, text, params, rest = networks("adaln")
    _, _, x, _, sigma = batch()
    want = jax.jit(text.apply)(rest, x, sigma).hidden
    np.testing.assert_array_equal(jax.jit(prefix.apply)(params, x, sigma).hidden, want)


@pytest.mark.slow
def test_dropout_is_another_in_source_and_target():
    """Values of the last layer do not depend on positions, only on what was dropped before it."""
    _, _, params, _ = networks("none")
    params = params | {"segment": jnp.zeros((1, SMALL.width))}
    network = make_network(dataclasses.replace(SMALL, dropout=0.3), VOCAB)
    source = batch()[0]
    valid = np.ones_like(source, bool)

    @jax.jit
    def both(keys):
        memory = network.encode(params, source, valid, dropout_keys=keys)
        return memory.v, network.apply(params, source, dropout_keys=keys, keep=True).cache[1]

    close(*both(None))
    of_source, of_target = both(jax.random.split(jax.random.key(0), 2))
    assert np.abs(of_source[-1] - of_target[-1]).mean() > 0.01


@pytest.mark.slow
def test_a_new_network_has_the_weights_of_the_network_of_text():
    prefix, text, _, _ = networks("adaln")
    key = jax.random.key(5)
    new = jax.jit(prefix.init)(key)
    assert new.pop("length")["kernel"].shape == (SMALL.width, SMALL.max_length)
    assert new.pop("segment").shape == (1, SMALL.width)
    jax.tree.map(np.testing.assert_array_equal, new, jax.jit(text.init)(key))
