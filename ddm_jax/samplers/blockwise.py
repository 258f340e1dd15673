"""Block diffusion's sampler: block after block from the left, over a KV cache of finished blocks.

Arriola et al. 2025 (arXiv:2503.09573), algorithm 2. Within a block it is the walk of
event_driven.py.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import MaskingProcess
from ddm_jax.diffusion.randomness import uniforms
from ddm_jax.errors import UserError
from ddm_jax.models.network import Apply, Params
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.event_driven import reveal_steps, split_keys, walk
from ddm_jax.samplers.signature import SampleSpec, Stats


def blockwise(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: MaskingProcess,
    spec: SampleSpec,
    block_size: int = 16,
) -> tuple[Array, Stats]:
    """Samples each block as `ancestral` in equal steps of time, given the blocks before it.

    Arguments and results are those of `ancestral`. spec.steps is the total, shared evenly by the L
    / block_size blocks, each of which takes at least one. nfe counts the steps at which a sequence
    changes, and one evaluation of each finished block for the cache. Each evaluation is of
    block_size tokens. Fixed positions in later blocks are kept, but earlier blocks do not depend on
    them.

    Raises:
      UserError: the block size does not divide the length.
    """
    count, length = prompt.shape
    if block_size < 1 or length % block_size:
        raise UserError(
            f"The blockwise sampler cannot cut {length} tokens into blocks of {block_size}: set "
            "config.objective.block_size to a divisor of the length, or choose another sampler."
        )
    blocks = length // block_size
    steps = jnp.maximum(spec.steps // blocks, 1)
    when, what = split_keys(key, count)
    step_of = reveal_steps(uniforms(when, (length,)), process, steps)

    def block(number: Array, carry: tuple[Array, Any, Array]) -> tuple[Array, Any, Array]:
        x, cache, nfe = carry
        start = number * block_size
        seen = jnp.arange(length) < start + block_size
        attend = jnp.broadcast_to(seen, (block_size, length))
        positions = start + jnp.arange(block_size)

        def evaluate(
            tokens: Array, step: Array | None = None, read: Array | None = None
        ) -> Readout:
            del step  # without time input
            return apply(params, tokens, attend=attend, positions=positions, cache=cache, read=read)

        now, now_steps = (
            jax.lax.dynamic_slice_in_dim(array, start, block_size, axis=1) for array in (x, step_of)
        )
        keys = jax.vmap(jax.random.fold_in, (0, None))(what, number)
        now, stats = walk(evaluate, keys, now, now_steps, process.mask_id, spec)
        x = jax.lax.dynamic_update_slice_in_dim(x, now, start, axis=1)
        return x, evaluate(now).cache, nfe + stats.nfe + 1

    x = jnp.where(fixed, prompt, process.mask_id)
    shapes = jax.eval_shape(lambda: apply(params, x, keep=True).cache)
    cache = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    nothing = jnp.zeros(count, jnp.int32)
    tokens, _, nfe = jax.lax.fori_loop(0, blocks, block, (x, cache, nothing))
    return tokens, Stats(nfe)
