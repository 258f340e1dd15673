"""The first-hitting sampler (Zheng et al. 2024, arXiv:2409.02908): infinitely many steps of time.

In that limit masks are revealed one at a time, each equally likely to be next, and the law of the
times at which this happens is known: with n masks left at t_n,

    1 - alpha(t_{n-1}) = (1 - alpha(t_n)) u^{1/n},   u ~ U(0, 1),   starting from t = 1
"""

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import Absorbing, random_ranks
from ddm_jax.diffusion.randomness import uniforms
from ddm_jax.models.network import Apply, Params
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.event_driven import split_keys, walk
from ddm_jax.samplers.signature import SampleSpec, Stats


def first_hitting(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: Absorbing,
    spec: SampleSpec,
) -> tuple[Array, Stats]:
    """Samples as `ancestral` in infinitely many steps; the time input is the time of each event.

    Arguments and results are those of `ancestral`; spec.steps is not read. nfe is the number of
    free positions. For what the schedule would leave masked at time 0 the time input is that of 0.
    """
    count, length = prompt.shape
    when, what = split_keys(key, count)
    order_key, time_key = jnp.moveaxis(jax.vmap(jax.random.split)(when), 1, 0)
    start = jnp.where(fixed, prompt, process.mask_id)
    masked = start == process.mask_id
    ranks = random_ranks(order_key, length, movable=masked)
    times = hitting_times(uniforms(time_key, (length,)), masked.sum(axis=1), process)

    def evaluate(x: Array, rank: Array, read: Array | None) -> Readout:
        t = jnp.take_along_axis(times, rank[:, None], axis=1)[:, 0]
        return apply(params, x, process.condition(t), read=read)

    return walk(evaluate, what, start, ranks, process.mask_id, spec)


def hitting_times(u: Array, masks: Array, process: Absorbing) -> Array:
    """The times of the events, in falling order: float32[B, L], int32[B] -> float32[B, L].

    1 - u is used as the formula's u: float32 resolves small numbers, but not those close to 1.
    Event r is that with masks - r masks left before it; beyond r = masks - 1 there is none.
    """
    left = jnp.maximum(masks[:, None] - jnp.arange(u.shape[1]), 1)
    # log(1 - alpha) adds up, and at both of its ends float32 keeps alpha or 1 - alpha
    noise = jnp.log1p(-process.schedule.alpha(1.0)) + jnp.cumsum(jnp.log1p(-u) / left, axis=1)
    sigma_bar = -jax.nn.log1mexp(-noise)
    return jnp.clip(process.schedule.time(sigma_bar), 0, 1)
