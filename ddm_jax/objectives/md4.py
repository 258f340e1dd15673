"""MD4 (Shi et al. 2024, arXiv:2406.04329): the bound of masked diffusion, with its constants.

The loss of MDLM with t from all of (0, 1): MD4's schedules keep alpha within [eps, 1 - eps], so
that no weight diverges. The parts that eps cuts off have terms of their own, and the three terms
are a bound.
"""

import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.models.network import Apply, Params
from ddm_jax.objectives.masked import on_grid
from ddm_jax.objectives.mdlm import mdlm_at
from ddm_jax.objectives.signature import Batch, LossOutput, Noise


def md4(
    apply: Apply,
    params: Params,
    batch: Batch,
    noise: Noise,
    process: Absorbing,
    steps: int = 0,
) -> LossOutput:
    """MD4's loss with its corruption drawn. Optimises a bound on -log p(x0).

    steps: 0 for continuous time, or T for the bound in T steps.
    """
    t = on_grid(noise.u, steps) if steps else noise.u
    xt = process.corrupt(noise.keys, batch["tokens"], t, batch["valid"])
    return md4_at(apply, params, batch, xt, t, process, steps)


def md4_at(
    apply: Apply,
    params: Params,
    batch: Batch,
    xt: Array,
    t: Array,
    process: Absorbing,
    steps: int = 0,
) -> LossOutput:
    """Diffusion, reconstruction and prior (section 3) at times t float[b].

    reconstruction: a token that is masked at t = 0 is guessed uniformly, n (1 - alpha(0)) log V.
    prior: p(x_1) is the mask, or with probability alpha(1) any token, n alpha(1) log V; the
    published code calls this term negligible and leaves it out.
    """
    diffusion = mdlm_at(apply, params, batch, xt, t, process, steps)
    schedule, n = process.schedule, batch["valid"].sum(axis=1)
    start, end, vocab = (jnp.asarray(x, t.dtype) for x in (0, 1, process.mask_id))
    reconstruction = n * schedule.one_minus_alpha(start) * jnp.log(vocab)
    prior = n * schedule.alpha(end) * jnp.log(vocab)
    bound = diffusion.loss + reconstruction + prior  # the loss is the bound of this term
    return LossOutput(bound, bound, diffusion.metrics)
