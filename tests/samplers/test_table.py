"""What holds for every sampler of SAMPLERS, on a network of an objective that it fits."""

import jax
import jax.numpy as jnp
import pytest

from ddm_jax.config import defaults, resolve
from ddm_jax.experiment import make_parts, make_sampler
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.samplers import SAMPLERS
from ddm_jax.samplers.signature import SampleSpec
from ddm_jax.settle import fitting_samplers, settle
from tests.programs import equations

VOCAB, LENGTH, COUNT = 11, 8, 3


def fitting_objective(sampler):
    return next(
        name
        for name, row in OBJECTIVES.items()
        if sampler in fitting_samplers(row, row.processes[0], row.times[0])
    )


def keys_of_draws(jaxpr):
    """The shapes of the keys from which a program draws or which it splits."""
    used = ("random_bits", "random_split")
    return [each.invars[0].aval.shape for each in equations(jaxpr) if each.primitive.name in used]


def sampling(name):
    """(function, its abstract arguments): of the key, the prompt, what is fixed, and SampleSpec."""
    config = defaults()
    config.model.width, config.model.depth, config.model.heads = 16, 2, 2
    config.data.length = LENGTH
    config.objective.name, config.sampler.name = fitting_objective(name), name
    config = settle(resolve(config))
    process, _, network = make_parts(config, VOCAB)
    params = jax.eval_shape(network.init, jax.random.key(0))
    prompt = jax.ShapeDtypeStruct((COUNT, LENGTH), jnp.int32)
    spec = SampleSpec(jnp.int32(5), jnp.float32(0.5), jnp.int32(3), jnp.float32(0.9))
    fixed, sample = jax.ShapeDtypeStruct(prompt.shape, bool), make_sampler(config)

    def run(params, key, prompt, fixed, spec):
        return sample(network.apply, params, key, prompt, fixed, process, spec)

    return run, (params, jax.random.key(0), prompt, fixed, spec)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_program_serves_all_steps_temperatures_and_prompts(name):
    """It can be traced with all of them unknown, and so is compiled once.

    Each sequence draws from a key of its own, made of the key of the call and its number: what it
    draws does not depend on how many there are.
    """
    run, arguments = sampling(name)
    program, (tokens, stats) = jax.make_jaxpr(run, return_shape=True)(*arguments)
    keys = keys_of_draws(program.jaxpr)
    assert {shape[:1] for shape in keys} == {(COUNT,)}
    assert (tokens.shape, tokens.dtype) == ((COUNT, LENGTH), jnp.int32)
    assert (stats.nfe.shape, stats.nfe.dtype) == ((COUNT,), jnp.int32)
