"""GenMD4 (Shi et al. 2024, arXiv:2406.04329, section 6): each token has its schedule, all learned.

With alpha_v(t) = 1 - (1 - eps) t^{w_v} (diffusion/vector_absorbing.py) a masked v is revealed at
the rate w_v / t. The bound weighs the rates of the data against those of the network,

    int_{t_1}^1 dt / t  E sum_masked [ w_{x0} (-log p_{x0} - 1) + sum_v w_v p_v ]

and adds what is left at both ends. The law of the masks depends on w: its gradient is estimated by
REINFORCE with two draws, each the baseline of the other (leave-one-out).
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.vector_absorbing import (
    EPS,
    VectorAbsorbing,
    equal_powers,
    with_learned_powers,
)
from ddm_jax.models.network import Apply, Params
from ddm_jax.models.readout import take_logit
from ddm_jax.objectives.signature import SAMPLING_EPS, Batch, LossOutput, Noise, share, uniform_time


def init(key: Array, process: Absorbing, power: float = 1.0) -> dict[str, Array]:
    """The initial params["objective"]: every w = power, which is above 0."""
    del key
    return equal_powers(process, power)


def genmd4(
    apply: Apply, params: Params, batch: Batch, noise: Noise, process: Absorbing
) -> LossOutput:
    """GenMD4's loss with both its corruptions drawn. Optimises a bound on -log p(x0)."""
    vector = with_learned_powers(process, params["objective"])
    t = uniform_time(noise.u)
    first, second = jnp.moveaxis(jax.vmap(jax.random.split)(noise.keys), 1, 0)
    x1, x2 = (vector.corrupt(k, batch["tokens"], t, batch["valid"]) for k in (first, second))
    return genmd4_at(apply, params, batch, x1, x2, t, process)


def genmd4_at(
    apply: Apply,
    params: Params,
    batch: Batch,
    x1: Array,
    x2: Array,
    t: Array,
    process: Absorbing,
) -> LossOutput:
    """The loss of two corruptions x1, x2 int32[b, L] at the same times t float[b] in [1e-3, 1].

    `bound` is the mean of the two estimates. `loss` has the same value, and the gradient

        grad (L_1 + L_2) / 2 + (L_1 - L_2) / 2 grad (log q(x1 | x0) - log q(x2 | x0))

    whose mean is that of E_q L. The published code has t ~ U(1e-3, 1) without the factor 1 - 1e-3,
    and leaves out the prior.
    """
    vector = with_learned_powers(process, params["objective"])

    def estimate(x: Array) -> tuple[Array, Array]:
        return diffusion_at(apply, params, batch, x, t, vector)

    # a loop: the network is compiled once
    (l1, l2), (masked1, masked2) = jax.lax.map(estimate, jnp.stack([x1, x2]))
    log_ratio = _log_q(x1, batch, t, vector) - _log_q(x2, batch, t, vector)
    score = jax.lax.stop_gradient(l1 - l2) / 2 * (log_ratio - jax.lax.stop_gradient(log_ratio))
    bound = (l1 + l2) / 2 + reconstruction(batch, vector) + prior(batch, vector)
    metrics = {
        "masked": (share(masked1, batch) + share(masked2, batch)) / 2,
        "power_min": jnp.full_like(bound, vector.w.min()),
        "power_max": jnp.full_like(bound, vector.w.max()),
    }
    return LossOutput(bound + score, bound, metrics)


def diffusion_at(
    apply: Apply, params: Params, batch: Batch, xt: Array, t: Array, vector: VectorAbsorbing
) -> tuple[Array, Array]:
    """(the diffusion term float[b], which valid positions are masked bool[b, L])."""
    w, masked = vector.w, (xt == vector.mask_id) & batch["valid"]

    def mismatch(logits: Array, x0: Array) -> Array:
        log_p, w_x0 = jax.nn.log_softmax(logits), w[x0]
        mean_w = jnp.dot(jnp.exp(log_p), w, precision="highest")
        return -w_x0 * (take_logit(log_p, x0) + 1) + mean_w

    per_position = apply(params, xt, vector.condition(t)).read(mismatch, batch["tokens"])
    total = jnp.where(masked, per_position, 0).sum(axis=1)
    return (1 - SAMPLING_EPS) / t * total, masked


def reconstruction(batch: Batch, vector: VectorAbsorbing) -> Array:
    """float[b]: a token masked at t_1 is guessed by p(v) ~ 1 - alpha_v(t_1)."""
    log_t = math.log(SAMPLING_EPS)
    log_masked = vector.w[batch["tokens"]] * log_t
    nats = jax.nn.logsumexp(vector.w * log_t) - log_masked
    expected = (1 - EPS) * jnp.exp(log_masked) * nats
    return jnp.where(batch["valid"], expected, 0).sum(axis=1)


def prior(batch: Batch, vector: VectorAbsorbing) -> Array:
    """float[b]: p(x_1) is the mask, or with probability alpha(1) = eps any token."""
    return batch["valid"].sum(axis=1) * EPS * math.log(vector.mask_id)


def _log_q(xt: Array, batch: Batch, t: Array, vector: VectorAbsorbing) -> Array:
    """log q(x_t | x_0), float[b]."""
    x0 = batch["tokens"]
    masked, clean = vector.log_masked(x0, t), vector.log_clean(x0, t)
    per_position = jnp.where(xt == vector.mask_id, masked, clean)
    return jnp.where(batch["valid"], per_position, 0).sum(axis=1)
