"""Block diffusion, BD3-LM (Arriola et al. 2025, arXiv:2503.09573).

Autoregressive over blocks, absorbing diffusion within each: block size 1 is an autoregressive
model, block size L is MDLM. All blocks are trained in one pass over [x_t, x_0] (section 3.2).
"""

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import Absorbing, random_ranks
from ddm_jax.diffusion.attention_masks import block_diffusion
from ddm_jax.models.network import Apply, Params
from ddm_jax.objectives.masked import masked_cross_entropy
from ddm_jax.objectives.signature import SAMPLING_EPS, Batch, LossOutput, Noise


def bd3lm(
    apply: Apply,
    params: Params,
    batch: Batch,
    noise: Noise,
    process: Absorbing,
    block_size: int = 4,
    clip_low: float = 0.0,
    clip_high: float = 1.0,
) -> LossOutput:
    """BD3-LM's loss with its corruption drawn: t ~ U(clip_low, clip_high) for each block.

    Unclipped it optimises a bound on -log p(x0) (eq. 8), t from [1e-3, 1]. Clipped times
    (section 5.2) give gradients of lower variance, and a loss that is not a bound: `bound` is then
    the unclipped one, from a separate pass, which jit removes where only the loss is used.
    """
    x0 = batch["tokens"]
    when, what = jnp.moveaxis(jax.vmap(jax.random.split)(noise.keys), 1, 0)
    u = block_uniforms(when, noise.u, x0.shape[1] // block_size)

    def between(low: float, high: float) -> LossOutput:
        low = max(low, SAMPLING_EPS)  # the weight diverges at 0
        t = jnp.repeat((high - low) * u + low, block_size, axis=1)
        xt = process.corrupt(what, x0, t, batch["valid"])
        return bd3lm_at(apply, params, batch, xt, t, process, block_size)

    out = between(clip_low, clip_high)
    if (clip_low, clip_high) == (0, 1):
        return out
    return LossOutput(out.loss, between(0, 1).bound, out.metrics)


def bd3lm_at(
    apply: Apply,
    params: Params,
    batch: Batch,
    xt: Array,
    t: Array,
    process: Absorbing,
    block_size: int,
) -> LossOutput:
    """sum_masked -alpha'/(1 - alpha) (-log p(x0_i given its block of x_t, earlier blocks of x_0)).

    xt int32[b, L] at times t float[b, L] that are the same within a block. The network has no time
    input, as in the published runs: there are L / block_size times.
    """
    x0 = batch["tokens"]
    length = x0.shape[1]
    readout = apply(
        params,
        jnp.concatenate([xt, x0], axis=1),
        attend=block_diffusion(length, block_size),
        positions=jnp.tile(jnp.arange(length), 2),
    )
    weight = process.schedule.weight(t)
    return masked_cross_entropy(readout.span(0, length), batch, xt, process.mask_id, weight)


def block_uniforms(keys: Array, u: Array, blocks: int) -> Array:
    """(u_i + pi_i(j)) / J, pi_i a random order of the J blocks: key[b], float[b] -> float[b, J].

    Each is uniform on (0, 1), and where the u are stratified over a batch so are all b J of them.
    """
    return (u[:, None] + random_ranks(keys, blocks)) / blocks
