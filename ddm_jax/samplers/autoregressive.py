"""Sampling from the left, one token for each evaluation of a causal network, without a cache."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.blocks import shifted
from ddm_jax.diffusion.categorical import categorical
from ddm_jax.diffusion.randomness import example_keys
from ddm_jax.samplers.signature import SampleSpec, Stats


def autoregressive(
    apply: Callable,
    params: Any,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: Absorbing,
    spec: SampleSpec,
) -> tuple[Array, Stats]:
    """Samples x_i ~ p(x_i given x_1 .. x_{i-1}) in turn, the exact law of the network.

    Arguments and results are those of `ancestral`, with nfe = L. Fixed positions are kept, but the
    positions on their left do not see them: only a prefix is conditioned on exactly.
    """
    del spec
    count, length = prompt.shape
    keys = example_keys(key, jnp.arange(count))

    def step(i: Array, x: Array) -> Array:
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        logits = apply(params, shifted(x, process.mask_id), attend="causal").span(i, 1).logits()
        x = jax.lax.dynamic_update_slice_in_dim(x, categorical(step_keys, logits), i, axis=1)
        return jnp.where(fixed, prompt, x)

    start = jnp.where(fixed, prompt, process.prior(keys, length))
    tokens = jax.lax.fori_loop(0, length, step, start)
    return tokens, Stats(nfe=jnp.full(count, length))
