"""A head that is read from the left: what it says, and what it goes with."""

import dataclasses

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


@pytest.fixture(scope="module")
def networks():
    """(shifted, not shifted, the parameters of both)."""
    plain = make_network(SMALL, VOCAB)
    shifted = make_network(dataclasses.replace(SMALL, shift=True), VOCAB)
    return shifted, plain, random_params(plain)


def tokens(count=3):
    return jax.random.randint(jax.random.key(0), (count, LENGTH), 0, VOCAB)


def test_parameters_are_those_of_the_network_without(networks):
    shifted, plain, _ = networks
    of = [jax.eval_shape(n.init, jax.random.key(0)) for n in (shifted, plain)]
    assert jax.tree.leaves_with_path(of[0]) == jax.tree.leaves_with_path(of[1])


def test_causal_and_shifted_is_the_autoregressive_network(networks):
    """The exact likelihood of text, by both, and the logits of each token."""
    shifted, plain, params = networks
    x = tokens()
    readout = shifted.apply(params, x, attend="causal")
    given = np.concatenate([np.full((len(x), 1), VOCAB), x[:, :-1]], axis=1)
    want = plain.apply(params, jnp.asarray(given), attend="causal").logits()
    np.testing.assert_allclose(readout.logits(), want, atol=1e-6)
    batch = {"tokens": x, "valid": jnp.ones(x.shape, bool)}
    noise = Noise(jnp.full(len(x), 0.5), jax.random.split(jax.random.key(1), len(x)))
    nll = ar(plain.apply, params, batch, noise, Absorbing(log_linear(), VOCAB)).loss
    logit, lse = readout.target(x)
    np.testing.assert_allclose((lse - logit).sum(axis=1), nll, rtol=1e-6)


def test_every_token_is_read_one_slot_to_the_left_of_its_own(networks):
    """Both ways: it sees all tokens, its own among them, each in the slot after its number."""
    shifted, plain, params = networks
    x = tokens()
    slots = jnp.concatenate([jnp.full((len(x), 1), VOCAB), x], axis=1)
    want = plain.apply(params, slots).logits()[:, :-1]
    np.testing.assert_allclose(shifted.apply(params, x).logits(), want, atol=1e-6)
    changed = shifted.apply(params, x.at[:, -1].set((x[:, -1] + 1) % VOCAB)).logits()
    assert (jnp.abs(changed - want).max(axis=(0, 2)) > 1e-4).all()


def test_reading_a_few_tokens_is_reading_all_and_taking_these(networks):
    shifted, _, params = networks
    x, read = tokens(), jnp.array([[0, 7], [3, 8], [5, 2]], jnp.int32)  # 8 stands for the last
    want = jnp.take_along_axis(
        shifted.apply(params, x).logits(), jnp.minimum(read, 7)[..., None], axis=1
    )
    np.testing.assert_allclose(shifted.apply(params, x, read=read).logits(), want, atol=1e-5)


def test_what_slots_have_no_room_for_is_not_taken(networks):
    shifted, _, params = networks
    for other in ({"keep": True}, {"positions": jnp.arange(LENGTH)}, {"seen": tokens() > 0}):
        with pytest.raises(TypeError):
            shifted.apply(params, tokens(), **other)


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
