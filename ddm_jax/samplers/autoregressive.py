"""Sampling from the left, one token for each evaluation of a causal network with a KV cache."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import MaskingProcess
from ddm_jax.diffusion.attention_masks import shifted
from ddm_jax.diffusion.randomness import example_keys
from ddm_jax.models.network import Apply, Params
from ddm_jax.samplers.draw import draw, position_keys
from ddm_jax.samplers.signature import SampleSpec, Stats


def autoregressive(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: MaskingProcess,
    spec: SampleSpec,
) -> tuple[Array, Stats]:
    """Samples x_i ~ p(x_i given x_1 .. x_{i-1}) in turn, the exact law of the network.

    Arguments and results are those of `ancestral`; spec.steps is not read. The prefix that is fixed
    in every sequence is read at once, so nfe = L - its length (+ 1 to read it), or less where every
    sequence has drawn spec.stop before, which then fills the rest. Other fixed positions are kept,
    but positions on their left do not depend on them: only conditioning on a prefix is exact.
    """
    count, length = prompt.shape
    keys = example_keys(key, jnp.arange(count))
    x = jnp.where(fixed, prompt, process.mask_id)
    prefix = jnp.cumprod(fixed.all(axis=0)).sum()

    def read_all() -> Any:
        # what is beyond the prefix is overwritten before anything attends to it
        given = shifted(x, process.mask_id)
        return apply(params, given, attend="causal", keep=True).cache

    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(read_all))
    cache = jax.lax.cond(prefix > 0, read_all, lambda: nothing)

    def goes_on(carry: tuple[Array, Array, Array, Any]) -> Array:
        i, _, ended, _ = carry
        return (i < length) & ~ended.all()

    def step(carry: tuple[Array, Array, Array, Any]) -> tuple[Array, Array, Array, Any]:
        i, x, ended, cache = carry
        before = jax.lax.dynamic_slice_in_dim(x, i - 1, 1, axis=1)
        before = jnp.where(i == 0, process.mask_id, before)
        readout = apply(
            params,
            before,
            attend=(jnp.arange(length) <= i)[None],
            positions=i[None],
            cache=cache,
        )
        at = jnp.full((count, 1), i)
        new = draw(position_keys(keys, at), readout.logits(), spec)
        old = jax.lax.dynamic_slice_in_dim(x, i, 1, axis=1)
        new = jnp.where(old == process.mask_id, new, old)
        x = jax.lax.dynamic_update_slice_in_dim(x, new, i, axis=1)
        return i + 1, x, ended | (new[:, 0] == spec.stop), readout.cache

    start = (prefix, x, jnp.zeros(count, bool), cache)
    end, x, _, _ = jax.lax.while_loop(goes_on, step, start)
    tokens = jnp.where(x == process.mask_id, spec.stop, x)
    return tokens, Stats(nfe=jnp.full(count, end - prefix + (prefix > 0)))
