"""What holds for every sampler of the table, on a network of an objective that it fits."""

import functools

import jax
import jax.numpy as jnp
import pytest

from ddm_jax.config import defaults, resolve
from ddm_jax.experiment import make_parts, make_sampler
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.samplers import SAMPLERS
from ddm_jax.samplers.signature import SampleSpec
from ddm_jax.settle import fitting_samplers, settle

VOCAB, LENGTH, COUNT = 11, 8, 2


def fitting_objective(sampler):
    return next(
        name
        for name, row in OBJECTIVES.items()
        if sampler in fitting_samplers(row, row.processes[0], row.times[0])
    )


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_program_serves_all_steps_temperatures_and_prompts(name):
    """It can be traced with all of them unknown, and so is compiled once."""
    config = defaults()
    config.model.width, config.model.depth, config.model.heads = 16, 2, 2
    config.data.length = LENGTH
    config.objective.name, config.sampler.name = fitting_objective(name), name
    config = settle(resolve(config))
    process, _, network = make_parts(config, VOCAB)
    params = jax.eval_shape(network.init, jax.random.key(0))
    prompt = jax.ShapeDtypeStruct((COUNT, LENGTH), jnp.int32)
    spec = SampleSpec(jnp.int32(5), jnp.float32(0.5), jnp.int32(3), jnp.float32(0.9))
    tokens, stats = jax.eval_shape(
        functools.partial(make_sampler(config), network.apply, process=process),
        params,
        jax.random.key(0),
        prompt,
        jax.ShapeDtypeStruct(prompt.shape, bool),
        spec=spec,
    )
    assert (tokens.shape, tokens.dtype) == (prompt.shape, jnp.int32)
    assert (stats.nfe.shape, stats.nfe.dtype) == ((COUNT,), jnp.int32)
