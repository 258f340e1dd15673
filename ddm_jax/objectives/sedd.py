"""SEDD's score entropy under absorbing and uniform noise (Lou et al. 2023, arXiv:2310.16834).

The network gives the logarithm of the score s_y = p_t(y) / p_t(x_t), where y stands for x_t with
another token at one position. With r_y the same ratio given x0, the diffusion weighted denoising
score entropy (theorem 3.6) is

    E_t sum_i sum_{y != x_t} Q(x_t, y) sigma(t) [s_y - r_y log s_y + r_y (log r_y - 1)]

The bracket is r_y phi(log s_y - log r_y) with phi(d) = e^d - 1 - d, which is how it stands below:
all constants are in it, it is 0 at s = r, and float32 loses nothing where r is tiny or huge.

Both bounds leave out the noise before t = 1e-3. That for uniform noise adds KL(q(x_1 | x0), prior),
0.003 nats per token of GPT-2's vocabulary at alpha(1) = 1e-3. For absorbing noise this KL is 0 at
alpha(1) = 0 and infinite otherwise, since the prior has masks only; it is left out, as in the
paper.

Each loss comes as the objective, which draws the corruption, and as `*_at`, which takes it.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.models.network import Apply, Params
from ddm_jax.models.readout import pick_by_mask
from ddm_jax.objectives.signature import Batch, LossOutput, Noise, share, uniform_time


def absorb(
    apply: Apply,
    params: Params,
    batch: Batch,
    noise: Noise,
    process: Absorbing,
    scale_by_sigma: bool = True,
) -> LossOutput:
    """Score entropy under masking. Optimises a bound on -log p(x0).

    If scale_by_sigma, the network's output is log s_y + log(e^sigma_bar - 1) + log V, so that an
    output of 0 is the right score of uniform tokens; otherwise log s_y itself (the published code).
    """
    t = uniform_time(noise.u)
    xt = process.corrupt(noise.keys, batch["tokens"], t, batch["valid"])
    return absorb_at(apply, params, batch, xt, t, process, scale_by_sigma)


def absorb_at(
    apply: Apply,
    params: Params,
    batch: Batch,
    xt: Array,
    t: Array,
    process: Absorbing,
    scale_by_sigma: bool = True,
) -> LossOutput:
    """sigma(t) sum_masked [sum_y s_y - r log s_x0 + r (log r - 1)], r = 1/(e^sigma_bar - 1).

    r_y is r at y = x0 and 0 elsewhere. xt int32[b, L] at times t float[b].
    """
    schedule = process.schedule
    masked = xt == process.mask_id
    readout = apply(params, xt, process.condition(t))
    if scale_by_sigma:
        shift = jnp.full_like(t, -math.log(readout.vocab_size))
    else:  # log(e^sigma_bar - 1), which would overflow
        shift = jnp.log(schedule.one_minus_alpha(t)) + schedule.sigma_bar(t)

    def entropy(logits: Array, x0: Array, shift: Array) -> Array:
        # log(sum_y s_y / r) and log(s_x0 / r)
        log_sum = jax.nn.logsumexp(logits, axis=-1) + shift
        return jnp.expm1(log_sum) - (pick_by_mask(logits, x0) + shift)

    weight = jnp.where(masked, schedule.weight(t)[:, None], 0)
    shift = jnp.broadcast_to(shift[:, None], xt.shape)
    loss = readout.losses(entropy, weight, batch["tokens"], shift).sum(axis=1)
    return LossOutput(loss, loss, {"masked": share(masked, batch)})


def uniform(
    apply: Apply, params: Params, batch: Batch, noise: Noise, process: Uniform
) -> LossOutput:
    """Score entropy under redrawing. Optimises a bound on -log p(x0), but for its prior term."""
    t = uniform_time(noise.u)
    xt = process.corrupt(noise.keys, batch["tokens"], t, batch["valid"])
    return uniform_at(apply, params, batch, xt, t, process)


def uniform_at(
    apply: Apply, params: Params, batch: Batch, xt: Array, t: Array, process: Uniform
) -> LossOutput:
    """sigma(t)/V sum_i sum_{y != x_t} [s_y - r_y log s_y + r_y (log r_y - 1)].

    Q = (1 1^T - V I)/V. The network's output is log s_y; its entry of x_t itself is not read.
    Clean tokens are e^gap times as likely as any other at time t, so r_y = q(y | x0) / q(x_t | x0)
    is e^-gap where x_t = x0, and elsewhere e^gap at y = x0 and 1 at the rest. xt int32[b, L] at
    times t float[b].
    """
    schedule, vocab_size, x0 = process.schedule, process.vocab_size, batch["tokens"]
    # e^gap = (alpha + (1 - alpha)/V) / ((1 - alpha)/V)
    gap = jnp.log1p(vocab_size * schedule.alpha(t) / schedule.one_minus_alpha(t))[:, None]
    moved = xt != x0

    def entropy(logits: Array, xt: Array, x0: Array, gap: Array) -> Array:
        y, moved = jnp.arange(vocab_size), xt != x0
        others = (y != xt[:, None]) & (y != x0[:, None])
        log_r = jnp.where(moved, 0, -gap)  # at every y but x0 and x_t
        of_others = _phi(jnp.where(others, logits - log_r[:, None], 0)).sum(axis=-1)
        of_x0 = _phi(jnp.where(moved, pick_by_mask(logits, x0) - gap, 0))
        return jnp.exp(log_r) * of_others + jnp.exp(gap) * of_x0

    readout = apply(params, xt, process.condition(t))
    weight = jnp.where(batch["valid"], (schedule.rate(t) / vocab_size)[:, None], 0)
    loss = readout.losses(entropy, weight, xt, x0, jnp.broadcast_to(gap, x0.shape)).sum(axis=1)
    bound = loss + batch["valid"].sum(axis=1) * process.prior_kl()
    return LossOutput(loss, bound, {"noised": share(moved, batch)})


def _phi(d: Array) -> Array:
    return jnp.expm1(d) - d
