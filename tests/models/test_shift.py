"""A head that is read from the left: what it says, and what it goes with."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import ModelConfig, resolve
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import log_linear
from ddm_jax.errors import UserError
from ddm_jax.models.network import make_network
from ddm_jax.objectives.ar import ar
from ddm_jax.objectives.signature import Noise
from ddm_jax.settle import settle
from tests.models.small import random_params

SMALL = ModelConfig(width=32, depth=2, heads=4, positions="learned", max_length=9, time="none")
VOCAB, LENGTH = 20, 8


PLAIN = make_network(SMALL, VOCAB)
SHIFTED = make_network(dataclasses.replace(SMALL, shift=True), VOCAB)


@pytest.fixture(scope="module")
def params():
    """Of both networks."""
    return random_params(PLAIN)


@functools.partial(jax.jit, static_argnames=("network", "attend"))
def logits(network, params, x, **rest):
    return network.apply(params, x, **rest).logits()


def tokens(count=3):
    return np.random.default_rng(0).integers(0, VOCAB, (count, LENGTH), np.int32)


def test_parameters_are_those_of_the_network_without():
    of = [jax.eval_shape(n.init, jax.random.key(0)) for n in (SHIFTED, PLAIN)]
    assert jax.tree.leaves_with_path(of[0]) == jax.tree.leaves_with_path(of[1])


def test_causal_and_shifted_is_the_autoregressive_network(params):
    """The exact likelihood of text, by both, and the logits of each token."""
    x = tokens()
    given = np.concatenate([np.full((len(x), 1), VOCAB), x[:, :-1]], axis=1)
    want = logits(PLAIN, params, given, attend="causal")

    @jax.jit
    def run(params, x, keys):
        batch = {"tokens": x, "valid": jnp.ones(x.shape, bool)}
        noise = Noise(jnp.full(len(x), 0.5), keys)
        nll = ar(PLAIN.apply, params, batch, noise, Absorbing(log_linear(), VOCAB)).loss
        readout = SHIFTED.apply(params, x, attend="causal")
        logit, lse = readout.target(x)
        return readout.logits(), (lse - logit).sum(axis=1), nll

    ours, of_target, nll = run(params, x, jax.random.split(jax.random.key(1), len(x)))
    np.testing.assert_allclose(ours, want, atol=1e-6)
    np.testing.assert_allclose(of_target, nll, rtol=1e-6)


def test_every_token_is_read_one_slot_to_the_left_of_its_own(params):
    """Both ways: it sees all tokens, its own among them, each in the slot after its number."""
    x = tokens()
    slots = np.concatenate([np.full((len(x), 1), VOCAB), x], axis=1)
    want = np.asarray(logits(PLAIN, params, slots))[:, :-1]
    np.testing.assert_allclose(logits(SHIFTED, params, x), want, atol=1e-6)
    other = np.where(np.arange(LENGTH) == LENGTH - 1, (x + 1) % VOCAB, x)
    changed = np.asarray(logits(SHIFTED, params, other))
    assert (np.abs(changed - want).max(axis=(0, 2)) > 1e-4).all()


def test_reading_a_few_tokens_is_reading_all_and_taking_these(params):
    x, read = tokens(), np.array([[0, 7], [3, 8], [5, 2]], np.int32)  # 8 stands for the last
    every = np.asarray(logits(SHIFTED, params, x))
    want = np.take_along_axis(every, np.minimum(read, 7)[..., None], axis=1)
    np.testing.assert_allclose(logits(SHIFTED, params, x, read=read), want, atol=1e-5)


def test_what_slots_have_no_room_for_is_not_taken(params):
    for other in ({"keep": True}, {"positions": np.arange(LENGTH)}, {"seen": tokens() > 0}):
        with pytest.raises(TypeError):
            SHIFTED.apply(params, tokens(), **other)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective.name": "ar"}, "objective.name='ar', which lays out its own input"),
        ({"objective.name": "bd3lm"}, "objective.name='bd3lm', which lays out its own input"),
        ({"layout.name": "sp"}, "config.layout.name='sp', which splits the positions"),
        (
            {"model.positions": "learned", "model.max_length": 64},
            "length=64, and its start, is longer than config.model.max_length=64",
        ),
        ({"model.kind": "prefix"}, "config.model.shift=True is for config.model.kind='lm'"),
    ],
)
def test_what_does_not_go_with_it_is_refused(changes, said):
    from configs.radd_tiny import get_config

    config = get_config()
    for field, value in {"model.shift": True, "data.length": 64, **changes}.items():
        section, _, name = field.partition(".")
        config[section][name] = value
    with pytest.raises(UserError, match=said):
        settle(resolve(config))
