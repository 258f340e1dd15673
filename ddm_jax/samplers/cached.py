"""RADD's cached sampler (Ou et al. 2024, arXiv:2406.03736, section 4.1), as published.

It walks through all N steps of time and evaluates the network again only when a token of the batch
has changed since; `event_driven` draws the same samples from the same key, in fewer evaluations
where several sequences are sampled at once.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import MaskingProcess
from ddm_jax.diffusion.randomness import uniforms
from ddm_jax.models.network import Apply, Params
from ddm_jax.samplers.draw import fill
from ddm_jax.samplers.event_driven import reveal_steps, split_keys
from ddm_jax.samplers.signature import SampleSpec, Stats


def cached(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: MaskingProcess,
    spec: SampleSpec,
) -> tuple[Array, Stats]:
    """Samples as `ancestral` in spec.steps equal steps of time, for a network without time input.

    Arguments and results are those of `ancestral`; nfe counts the evaluations of the batch, in
    which every sequence takes part.
    """
    count, length = prompt.shape
    when, what = split_keys(key, count)
    step_of = reveal_steps(uniforms(when, (length,)), process, spec.steps)
    start = jnp.where(fixed, prompt, process.mask_id)

    def step(i: Array, carry: tuple[Array, Any, Array, Array]) -> tuple[Array, Any, Array, Array]:
        x, readout, stale, nfe = carry
        chosen = (x == process.mask_id) & (step_of == i)
        needed = stale & chosen.any()
        readout = jax.lax.cond(needed, lambda: apply(params, x), lambda: readout)
        changed = jax.lax.cond(
            chosen.any(), lambda: fill(what, x, chosen, readout, spec), lambda: x
        )
        return changed, readout, (stale & ~needed) | chosen.any(), nfe + needed

    nothing = jax.eval_shape(apply, params, start)
    readout = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), nothing)
    carry = (start, readout, jnp.bool(True), jnp.int32(0))
    tokens, _, _, nfe = jax.lax.fori_loop(0, spec.steps, step, carry)
    return tokens, Stats(nfe=jnp.full(count, nfe))
