"""What holds of every network from a source to a target, through `encode` and `apply`."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import ModelConfig
from ddm_jax.models.network import Network, make_network, with_parameters
from tests.models.small import random_params

VOCAB, SOURCE, TARGET = 50, 7, 8
SOURCES, TARGETS = np.array([4, 7, 2]), np.array([5, 3, 8])  # real tokens of each example
KINDS = {"encoder_decoder": "input", "prefix": "adaln"}  # with the time, where there is a choice
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)


@dataclasses.dataclass(frozen=True)
class Given:
    """A network, weights, and a batch whose padding is nothing in particular."""

    network: Network
    params: dict
    source: np.ndarray
    valid: np.ndarray
    x: np.ndarray
    seen: np.ndarray
    sigma: np.ndarray
    run: Callable  # (params, source, valid, x, seen, sigma) -> memory, hidden
    apply: Callable  # that of the network, compiled
    causal: Callable  # the same, of a causal target, whose cache it keeps


def small(kind: str, **options) -> ModelConfig:
    sizes = {"width": 32, "depth": 2, "heads": 4, "max_length": 20, "time": KINDS[kind]}
    return ModelConfig(kind=kind, **sizes | options)


@functools.cache
def make(kind: str) -> Given:
    network = make_network(small(kind), VOCAB)
    random = np.random.default_rng(0)

    @jax.jit
    def run(params, source, valid, x, seen, sigma):
        memory = network.encode(params, source, valid)
        return memory, network.apply(params, x, sigma, memory=memory, seen=seen).hidden

    return Given(
        network,
        random_params(network),
        random.integers(0, VOCAB, (3, SOURCE)),
        np.arange(SOURCE) < SOURCES[:, None],
        random.integers(0, VOCAB + 1, (3, TARGET)),
        np.arange(TARGET) < TARGETS[:, None],
        np.array([0.3, 1.0, 7.0], np.float32),
        run,
        jax.jit(network.apply),
        jax.jit(functools.partial(network.apply, attend="causal", keep=True)),
    )


@pytest.fixture(params=KINDS)
def given(request) -> Given:
    return make(request.param)


def outcome(given: Given, **changed: np.ndarray):
    """The memory and the hidden states, of a batch that may be changed."""
    names = ("source", "valid", "x", "seen", "sigma")
    batch = (changed.get(name, getattr(given, name)) for name in names)
    return jax.device_get(given.run(given.params, *batch))


def widened(x: np.ndarray, more: int) -> np.ndarray:
    """Further columns: False of masks, other tokens."""
    fill = False if x.dtype == bool else 11
    return np.pad(x, ((0, 0), (0, more)), constant_values=fill)


def test_what_is_padding_and_how_much_changes_nothing(given):
    memory, hidden = outcome(given)
    other = {
        "source": np.where(given.valid, given.source, (given.source + 1) % VOCAB),
        "x": np.where(given.seen, given.x, (given.x + 1) % VOCAB),
    }
    again, hidden_again = outcome(given, **other)
    np.testing.assert_array_equal(hidden_again[given.seen], hidden[given.seen])
    np.testing.assert_array_equal(again.length_logits, memory.length_logits)
    more = {"source": 5, "valid": 5, "x": 3, "seen": 3}
    wider = {name: widened(getattr(given, name), number) for name, number in more.items()}
    wide, hidden_wide = outcome(given, **wider)
    close(hidden_wide[:, :TARGET][given.seen], hidden[given.seen])
    close(wide.length_logits, memory.length_logits)
    close(wide.k[:, :, :SOURCE][:, given.valid], memory.k[:, given.valid])


def test_an_example_does_not_depend_on_the_batch(given):
    memory, hidden = outcome(given)
    of = slice(2, 3)
    alone = {
        "source": given.source[of, : SOURCES[2]],
        "valid": given.valid[of, : SOURCES[2]],
        "x": given.x[of],
        "seen": given.seen[of],
        "sigma": given.sigma[of],
    }
    own, hidden_alone = outcome(given, **alone)
    close(hidden_alone, hidden[of])
    close(own.length_logits, memory.length_logits[of])


def test_every_real_token_is_seen_by_every_position(given):
    _, hidden = outcome(given)
    for name, lengths in (("source", SOURCES), ("x", TARGETS)):
        for i, last in enumerate(lengths - 1):
            changed = getattr(given, name).copy()
            changed[i, last] = (changed[i, last] + 1) % VOCAB
            _, other = outcome(given, **{name: changed})
            apart = np.abs(other - hidden).max(axis=-1)
            assert (apart[i][given.seen[i]] > 1e-4).all()
            assert (np.delete(apart, i, axis=0) == 0).all()


def test_time_is_that_of_the_target(given):
    memory, hidden = outcome(given)
    again, other = outcome(given, sigma=given.sigma + 1)
    jax.tree.map(np.testing.assert_array_equal, again, memory)
    assert (np.abs(other - hidden).max(axis=-1) > 1e-4).all()


def test_causal_target_sees_the_source_and_no_later_token(given):
    memory, _ = outcome(given)

    def hidden(x, memory):
        rest = {"sigma": given.sigma, "memory": memory, "seen": None}
        return np.asarray(given.causal(given.params, x, **rest).hidden)

    before = hidden(given.x, memory)
    changed = given.x.copy()
    changed[:, 4] = (changed[:, 4] + 1) % VOCAB
    apart = np.abs(hidden(changed, memory) - before).max(axis=-1)
    assert (apart[:, :4] == 0).all()
    assert (apart[:, 4:] > 1e-4).all()
    other = dataclasses.replace(memory, v=memory.v + 1)
    apart = np.abs(hidden(given.x, other) - before).max(axis=-1)
    assert (apart > 1e-4).all()


@pytest.mark.slow
@pytest.mark.parametrize("masked", [True, False])
def test_tokens_one_by_one_over_a_cache_are_a_causal_pass(given, masked):
    memory, _ = outcome(given)
    rest = {"sigma": given.sigma, "memory": memory, "seen": given.seen if masked else None}
    whole = jax.device_get(given.causal(given.params, given.x, **rest))
    cache = jax.tree.map(np.zeros_like, whole.cache)
    for start, number in ((0, 2), *((i, 1) for i in range(2, TARGET))):
        at = start + np.arange(number)
        some = given.apply(
            given.params,
            given.x[:, at],
            attend=np.arange(TARGET) <= at[:, None],
            positions=at,
            cache=cache,
            **rest,
        )
        cache = some.cache
        close(some.hidden, whole.hidden[:, at])
    jax.tree.map(close, cache, whole.cache)


@pytest.mark.slow
def test_reading_a_few_tokens_is_reading_all_and_taking_these(given):
    memory, _ = outcome(given)
    read = np.random.default_rng(0).integers(0, TARGET + 1, (3, 4)).astype(np.int32)
    sees = (np.random.default_rng(1).random((TARGET, TARGET)) < 0.7) | np.eye(TARGET, dtype=bool)
    apply = functools.partial(given.apply, given.params, given.x, given.sigma)
    for pattern in ({}, {"seen": given.seen}, {"seen": given.seen | True, "attend": sees}):
        few = apply(memory=memory, read=read, **pattern)
        every = apply(memory=memory, **pattern)
        close(few.hidden, every.at(np.minimum(read, TARGET - 1)).hidden)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_of_source_and_target_is_the_examples(kind):
    given, network = make(kind), make_network(small(kind, dropout=0.3), VOCAB)
    keys = jax.random.split(jax.random.key(9), 3)

    @jax.jit
    def run(source, valid, x, seen, sigma, keys):
        memory = network.encode(given.params, source, valid, dropout_keys=keys)
        out = network.apply(given.params, x, sigma, memory=memory, seen=seen, dropout_keys=keys)
        return memory, out.hidden

    names = ("source", "valid", "x", "seen", "sigma")
    memory, hidden = jax.device_get(run(*(getattr(given, name) for name in names), keys))
    order = np.array([2, 0, 1])
    again, moved = run(*(getattr(given, name)[order] for name in names), keys[order])
    close(moved, hidden[order])
    close(again.length_logits, memory.length_logits[order])
    without, _ = outcome(given)
    assert np.abs(memory.length_logits - without.length_logits).max() > 1e-3
    calm = given.apply(given.params, given.x, given.sigma, memory=memory, seen=given.seen)
    assert np.abs(calm.hidden - hidden).max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_close_and_reads_in_float32(kind):
    given = make(kind)
    network = make_network(small(kind, compute_dtype="bfloat16"), VOCAB)

    @jax.jit
    def run(source, valid, x, seen, sigma):
        memory = network.encode(given.params, source, valid)
        out = network.apply(given.params, x, sigma, memory=memory, seen=seen)
        return memory, out.hidden, out.logits()

    memory, hidden, logits = run(given.source, given.valid, given.x, given.seen, given.sigma)
    assert memory.k.dtype == memory.v.dtype == hidden.dtype == jnp.bfloat16
    assert memory.length_logits.dtype == logits.dtype == jnp.float32
    exact, exact_hidden = outcome(given)
    np.testing.assert_allclose(memory.length_logits, exact.length_logits, atol=0.05)
    np.testing.assert_allclose(np.asarray(hidden, np.float32), exact_hidden, atol=0.2)


@pytest.mark.parametrize("kind", KINDS)
def test_program_does_not_grow_with_depth(kind):
    given = make(kind)

    def size(depth):
        network = make_network(small(kind, depth=depth), VOCAB)
        params = jax.eval_shape(network.init, jax.random.key(0))

        def both(params):
            memory = network.encode(params, given.source, given.valid)
            return network.apply(params, given.x, given.sigma, memory=memory).hidden

        return len(jax.jit(both).lower(params).as_text())

    assert size(24) < 1.05 * size(2)


def test_a_network_of_text_has_no_memory():
    assert make_network(ModelConfig(width=32, depth=2, heads=4), VOCAB).encode is None


@pytest.mark.slow
def test_parameters_of_an_objective_are_kept_from_the_network(given):
    more = with_parameters(given.network, "objective", lambda key: {"w": jnp.ones(3)})
    params = given.params | {"objective": {"w": np.ones(3)}}
    memory = jax.jit(more.encode)(params, given.source, given.valid)
    want, _ = outcome(given)
    jax.tree.map(close, memory, want)
    lm = make_network(ModelConfig(width=32, depth=2, heads=4), VOCAB)
    assert with_parameters(lm, "objective", lambda key: {}).encode is None
