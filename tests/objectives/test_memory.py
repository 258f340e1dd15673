"""No objective holds the float logits of a whole batch, forwards or backwards."""

import jax
import jax.numpy as jnp
import pytest

from ddm_jax.config import defaults, resolve
from ddm_jax.diffusion.randomness import example_keys, step_key, stratified
from ddm_jax.experiment import make_parts
from ddm_jax.models import head as head_module
from ddm_jax.models import readout as readout_module
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.objectives.signature import Noise
from ddm_jax.settle import settle
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


def gradient_program(name, q_sample=None):
    """The jaxpr of the gradient of one batch's mean loss."""
    config = defaults()
    config.model.width, config.model.depth, config.model.heads = 8, 1, 2
    config.data.length, config.objective.name = LENGTH, name
    config.objective.q_sample = q_sample
    config = settle(resolve(config))
    process, objective, network = make_parts(config, VOCAB)
    params = jax.eval_shape(network.init, jax.random.key(0))
    batch = {"tokens": jnp.zeros((BATCH, LENGTH), int), "valid": jnp.ones((BATCH, LENGTH), bool)}
    key, index = step_key(0, 0), jnp.arange(BATCH)
    noise = Noise(stratified(key, index, BATCH), example_keys(key, index))

    def loss(params):
        return objective.loss(network.apply, params, batch, noise, process).loss.mean()

    return jax.make_jaxpr(jax.grad(loss))(params).jaxpr


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
