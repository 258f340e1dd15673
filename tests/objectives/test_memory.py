"""No objective holds the float logits of a whole batch, forwards or backwards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import defaults, resolve
from ddm_jax.experiment import make_parts
from ddm_jax.models import head as head_module
from ddm_jax.models import readout as readout_module
from ddm_jax.models.readout import Readout
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.settle import settle
from tests.batch import batch_of, noise_of
from tests.programs import outputs

VOCAB, BATCH, LENGTH = 5_000, 4, 16


def largest_float(jaxpr):
    """The size of the largest float array that a program computes, inner programs included."""
    floats = (
        x for _, x in outputs(jaxpr) if jnp.issubdtype(getattr(x, "dtype", int), jnp.floating)
    )
    return max(x.size for x in floats)


def allow(monkeypatch, rows):
    """Lets a device hold the logits of so many positions at once."""
    for module in (readout_module, head_module):
        monkeypatch.setattr(module, "LOGIT_BYTES", 4 * rows * 5_120)


def shallow(params, tokens, sigma=None, attend=None, positions=None):
    """A network without layers, of whose program the loss is the greater part."""
    hidden = params["embed"][tokens]
    hidden = hidden if sigma is None else hidden * sigma[:, None, None]
    return Readout(hidden, params["kernel"], params["bias"], VOCAB)


SHALLOW = {
    name: jax.ShapeDtypeStruct(shape, jnp.float32)
    for name, shape in {"embed": (5_120, 8), "kernel": (8, 5_120), "bias": (5_120,)}.items()
}


def gradient_program(name, q_sample=None, deep=False):
    """The jaxpr of the gradient of a batch's mean loss; deep: with the network that is trained."""
    config = defaults()
    config.model.width, config.model.depth, config.model.heads = 8, 1, 2
    config.data.length, config.objective.name = LENGTH, name
    config.objective.q_sample = q_sample
    config = settle(resolve(config))
    process, objective, network = make_parts(config, VOCAB)
    apply, params = shallow, SHALLOW
    if objective.init:
        init = functools.partial(objective.init, process=process)
        params = params | {"objective": jax.eval_shape(init, jax.random.key(0))}
    if deep:
        apply, params = network.apply, jax.eval_shape(network.init, jax.random.key(0))

    def loss(params, batch, noise):
        return objective.loss(apply, params, batch, noise, process).loss.mean()

    batch, noise = batch_of(np.zeros((BATCH, LENGTH), int)), jax.eval_shape(noise_of, BATCH)
    return jax.make_jaxpr(jax.grad(loss))(params, batch, noise).jaxpr


@pytest.mark.parametrize("name", ["mdlm", "sedd_uniform", "bd3lm"])
def test_nor_has_any_with_the_network_that_is_trained(name, monkeypatch):
    rows = BATCH * LENGTH // 4
    allow(monkeypatch, rows)
    largest = largest_float(gradient_program(name, deep=True))
    assert rows * VOCAB <= largest < BATCH * LENGTH * VOCAB / 2


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_array_has_a_logit_for_every_token_of_the_batch(name, monkeypatch):
    rows = BATCH * LENGTH // 4  # of logits at once
    allow(monkeypatch, rows)
    assert rows * VOCAB <= largest_float(gradient_program(name)) < BATCH * LENGTH * VOCAB / 2


def test_two_corruptions_hold_twice_the_logits_of_one(monkeypatch):
    rows = BATCH * LENGTH // 8
    allow(monkeypatch, rows)
    largest = largest_float(gradient_program("rdm_absorb", q_sample="coupled"))
    assert 2 * rows * VOCAB <= largest < BATCH * LENGTH * VOCAB / 2


def test_whole_logits_would_be_seen(monkeypatch):
    assert largest_float(gradient_program("radd_t_dce")) >= BATCH * LENGTH * VOCAB
