"""RDM's reparameterised training (Zheng et al. 2023, arXiv:2302.05737, section 4).

There, whether a token is noise is a variable of its own, and the terms of the bound are the cross
entropies of the noised tokens only, whose weights training is free to choose. For either noise:

    L = sum_{t=1}^T E_{x_t} sum_i -lambda(t) [x_t,i != x0_i] log p(x0_i | x_t)

    linear      lambda = 1 - (t - 1) / T
    reciprocal  lambda = 1 / t, which under masking with alpha_bar = 1 - t/T is D3PM's bound
    none        lambda = 1
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.d3pm import D3PMAbsorbing, D3PMUniform
from ddm_jax.diffusion.randomness import uniforms
from ddm_jax.models.network import Apply, Params
from ddm_jax.models.readout import pick_by_mask
from ddm_jax.objectives.masked import on_grid
from ddm_jax.objectives.signature import Batch, LossOutput, Noise, share

# lambda of the step t = 1 .. T: (t float[b], T) -> float[b]
WEIGHTINGS: dict[str, Callable[[Array, int], Array]] = {
    "linear": lambda t, steps: 1 - (t - 1) / steps,
    "reciprocal": lambda t, steps: 1 / t,
    "none": lambda t, steps: jnp.ones_like(t),
}


def rdm(
    apply: Apply,
    params: Params,
    batch: Batch,
    noise: Noise,
    process: D3PMAbsorbing | D3PMUniform,
    weighting: str = "linear",
    q_sample: str = "default",
    label_smoothing: float = 0.1,
) -> LossOutput:
    """The loss of `rdm_at`, t uniform on 1..T. Not a bound.

    q_sample "default" draws one x_t. The others average over two, which costs two evaluations of
    the network: "multi_sample" at one time, "multi_step" at two times, "coupled" at two times where
    x_t of the earlier is drawn given x_t of the later (`pair`).
    """
    if q_sample == "default":
        t = on_grid(noise.u, process.schedule.count)
        xt = process.corrupt(noise.keys, batch["tokens"], t, batch["valid"])
        return rdm_at(apply, params, batch, xt, t, process, weighting, label_smoothing)

    def of_one(drawn: tuple[Array, Array]) -> LossOutput:
        return rdm_at(apply, params, batch, *drawn, process, weighting, label_smoothing)

    # a loop: the network is compiled once
    both = jax.lax.map(of_one, pair(batch, noise, process, q_sample))
    mean: LossOutput = jax.tree.map(lambda x: x.mean(axis=0), both)
    return mean


def rdm_at(
    apply: Apply,
    params: Params,
    batch: Batch,
    xt: Array,
    t: Array,
    process: D3PMAbsorbing | D3PMUniform,
    weighting: str = "linear",
    label_smoothing: float = 0.1,
) -> LossOutput:
    """T sum_noised [-(1 - e) lambda(t) log p(x0_i) - e mean_v log p(v)], e the label smoothing.

    xt int32[b, L] at times t float[b] on the grid 1/T .. 1. T = 1 / p(t) makes this an estimate of
    the sum over t, which lambda leaves out of the smoothing, as published. The published total is
    this over the length of the row, padding included: theirs is a mean over positions.
    """
    x0, steps = batch["tokens"], process.schedule.count
    noised = (xt != x0) & batch["valid"]

    def smoothed(logits: Array, x0: Array, weight: Array) -> Array:
        lse = jax.nn.logsumexp(logits, axis=-1)
        ce, smooth = lse - pick_by_mask(logits, x0), lse - logits.mean(axis=-1)
        return (1 - label_smoothing) * weight * ce + label_smoothing * smooth

    weight = WEIGHTINGS[weighting](jnp.round(steps * t), steps)
    weight = jnp.broadcast_to(weight[:, None], x0.shape)
    readout = apply(params, xt, process.condition(t))
    loss = readout.losses(smoothed, steps * noised, x0, weight).sum(axis=1)
    return LossOutput(loss, None, {"noised": share(noised, batch)})


def pair(
    batch: Batch, noise: Noise, process: D3PMAbsorbing | D3PMUniform, q_sample: str
) -> tuple[Array, Array]:
    """(x_t int32[2, b, L], t float32[2, b] on the grid), each x_t of the law q(x_t | x0).

    "coupled": t[0] >= t[1], and x_t[1] ~ q(x_t[1] | x_t[0], x0); given x0 only where both times are
    the same, as published.
    """
    x0, valid, steps = batch["tokens"], batch["valid"], process.schedule.count
    when, first, second = jnp.moveaxis(
        jax.vmap(lambda key: jax.random.split(key, 3))(noise.keys), 1, 0
    )
    t = on_grid(noise.u, steps)
    s = t if q_sample == "multi_sample" else on_grid(uniforms(when), steps)
    if q_sample == "coupled":
        s, t = jnp.minimum(s, t), jnp.maximum(s, t)
    xt, xs = (process.corrupt(k, x0, at, valid) for k, at in ((first, t), (second, s)))
    if q_sample == "coupled":
        given = valid & ~process.schedule.same(s, t)[:, None]
        xs = jnp.where(given, process.bridge(second, x0, xt, s, t), xs)
    return jnp.stack([xt, xs]), jnp.stack([t, s])
