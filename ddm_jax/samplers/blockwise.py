"""Block diffusion's sampler: block after block from the left, ancestral steps within each.

Arriola et al. 2025 (arXiv:2503.09573), algorithm 2. Without a cache of the finished blocks.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.blocks import block_causal
from ddm_jax.diffusion.randomness import example_keys
from ddm_jax.errors import UserError
from ddm_jax.samplers.signature import SampleSpec, Stats


def blockwise(
    apply: Callable,
    params: Any,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: Absorbing,
    spec: SampleSpec,
) -> tuple[Array, Stats]:
    """Samples each block in equal steps of time, given the blocks before it.

    Arguments and results are those of `ancestral`. spec.steps is the total, shared evenly by the L
    / spec.block_size blocks, each of which takes at least one; nfe is what came of that. Fixed
    positions in later blocks are kept, but what comes before them does not see them.

    Raises:
      UserError: the block size does not divide the length.
    """
    count, length = prompt.shape
    size = spec.block_size
    if size < 1 or length % size:
        raise UserError(
            f"The blockwise sampler cannot cut {length} tokens into blocks of {size}: set "
            "config.objective.block_size to a divisor of the length, or choose another sampler."
        )
    steps = max(spec.steps * size // length, 1)
    attend = block_causal(length, size)
    keys = example_keys(key, jnp.arange(count))

    def step(number: Array, x: Array) -> Array:
        start, i = number // steps * size, number % steps
        t, s = 1 - i / steps, 1 - (i + 1) / steps
        s = jnp.where(i == steps - 1, 0.0, s)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        logits = apply(params, x, attend=attend).span(start, size).logits()
        block = jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
        block = process.reverse(step_keys, block, logits, s, t)
        x = jax.lax.dynamic_update_slice_in_dim(x, block, start, axis=1)
        return jnp.where(fixed, prompt, x)

    nfe = steps * (length // size)
    start = jnp.where(fixed, prompt, process.prior(keys, length))
    tokens = jax.lax.fori_loop(0, nfe, step, start)
    return tokens, Stats(nfe=jnp.full(count, nfe))
