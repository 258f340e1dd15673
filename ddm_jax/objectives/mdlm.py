"""MDLM (Sahoo et al. 2024, arXiv:2406.07524): weighted cross entropy of the masked tokens.

The SUBS parameterisation is the network's own: it gives the mask no probability, and a token that
is not masked is carried over. The loss is then (section 3, its continuous-time bound)

    E_{t ~ U(0,1)} -alpha'(t) / (1 - alpha(t)) sum_masked -log p(x0_i given x_t)

which no schedule changes in expectation, or its counterpart in T steps. A bound on
-log p(x0), but for what is cut off: t below 1e-3, and the alpha(1) that a schedule leaves.
"""

import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import Absorbing, mask_independently
from ddm_jax.diffusion.schedules import Schedule
from ddm_jax.models.network import Apply, Params
from ddm_jax.objectives.masked import masked_cross_entropy, on_grid, time_weight
from ddm_jax.objectives.signature import SAMPLING_EPS, Batch, LossOutput, Noise, uniform_time


def mdlm(
    apply: Apply,
    params: Params,
    batch: Batch,
    noise: Noise,
    process: Absorbing,
    steps: int = 0,
    importance: bool = False,
) -> LossOutput:
    """MDLM's loss with its corruption drawn. Optimises a bound on -log p(x0).

    steps: 0 for continuous time, or T for the bound in T steps. importance: draw times in
    proportion to their weight, which is then the same for all (continuous time, whatever steps).
    """
    x0, valid = batch["tokens"], batch["valid"]
    if importance:
        log_m = importance_noise(noise.u, process.schedule)
        xt = mask_independently(noise.keys, x0, jnp.exp(log_m), process.mask_id, movable=valid)
        return mdlm_importance_at(apply, params, batch, xt, log_m, process)
    t = on_grid(noise.u, steps) if steps else uniform_time(noise.u)
    xt = process.corrupt(noise.keys, x0, t, valid)
    return mdlm_at(apply, params, batch, xt, t, process, steps)


def mdlm_at(
    apply: Apply,
    params: Params,
    batch: Batch,
    xt: Array,
    t: Array,
    process: Absorbing,
    steps: int = 0,
) -> LossOutput:
    """The loss at times t float[b], which are multiples of 1/steps unless steps = 0."""
    readout = apply(params, xt, process.condition(t))
    weight = time_weight(process.schedule, t, steps)
    return masked_cross_entropy(readout, batch, xt, process.mask_id, weight)


def importance_noise(u: Array, schedule: Schedule) -> Array:
    """log(1 - alpha(t)), uniform between its values at t = 1e-3 (u = 0) and 1: float32[b].

    The weight is d log(1 - alpha) / dt, so that these are times drawn in proportion to it.
    """
    low, high = _log_masked_range(schedule, u)
    # counted from t = 1: where alpha is small, what matters is the distance from there
    return high - (1 - u) * (high - low)


def mdlm_importance_at(
    apply: Apply, params: Params, batch: Batch, xt: Array, log_m: Array, process: Absorbing
) -> LossOutput:
    """The loss at times drawn by `importance_noise`, log_m = log(1 - alpha(t)) float[b].

    Its weight is the integral of the other's over [1e-3, 1]; MDLM's code (importance_sampling)
    leaves out alpha(1), one part in 10^4.
    """
    low, high = _log_masked_range(process.schedule, log_m)
    sigma_bar = -jnp.log(-jnp.expm1(log_m))
    readout = apply(params, xt, sigma_bar)
    # t ~ U(1e-3, 1) elsewhere, which has the density 1 / (1 - 1e-3)
    weight = jnp.broadcast_to((high - low) / (1 - SAMPLING_EPS), log_m.shape)
    return masked_cross_entropy(readout, batch, xt, process.mask_id, weight)


def _log_masked_range(schedule: Schedule, like: Array) -> tuple[Array, Array]:
    """log(1 - alpha) at t = 1e-3 and at t = 1, in the dtype of `like`."""
    first, last = jnp.asarray(SAMPLING_EPS, like.dtype), jnp.asarray(1, like.dtype)
    return jnp.log(schedule.one_minus_alpha(first)), jnp.log1p(-schedule.alpha(last))
