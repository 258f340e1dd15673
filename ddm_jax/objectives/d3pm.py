"""D3PM's losses (Austin et al. 2021, arXiv:2107.03006), T steps, any transition matrix.

The network gives p(x0 | x_t), position by position, and the reverse step is

    p(x_{t-1} | x_t) = sum_x0 q(x_{t-1}, x_t | x0) p(x0 | x_t), normalised        (eq. 4)

    L_vb = KL(q(x_T | x0) || prior) + sum_{t=2}^T E KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t))
           - E log p(x0 | x_1)                                                    (eq. 1)
    L_hybrid = L_vb + lambda E_t -log p(x0 | x_t)                                 (eq. 5)

The term of t = 1 is the KL too, its posterior being certain of x0.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.d3pm import D3PMAbsorbing
from ddm_jax.diffusion.process import StepProcess
from ddm_jax.models.network import Apply, Params
from ddm_jax.models.readout import Readout, take_logit
from ddm_jax.objectives.masked import on_grid
from ddm_jax.objectives.signature import Batch, LossOutput, Noise

# under masking the KL of a step has a closed form, which needs none of StepProcess's laws
D3PMProcess = D3PMAbsorbing | StepProcess
FLOOR = 1e-30  # of probabilities that are divided by or whose log is taken


def d3pm(
    apply: Apply,
    params: Params,
    batch: Batch,
    noise: Noise,
    process: D3PMProcess,
    ce_weight: float = 0.0,
) -> LossOutput:
    """L_vb + ce_weight CE, t uniform on 1..T. The bound is L_vb, without any truncation."""
    xt, t = _draw(batch, noise, process)
    return d3pm_at(apply, params, batch, xt, t, process, ce_weight)


def d3pm_at(
    apply: Apply,
    params: Params,
    batch: Batch,
    xt: Array,
    t: Array,
    process: D3PMProcess,
    ce_weight: float = 0.0,
) -> LossOutput:
    """The T-fold term of step T t and the KL of the prior; t float[b] on the grid, xt int32[b, L].

    ce_weight adds sum_i -log p(x0_i | x_t) over all valid tokens. The published code weighs that
    against the mean of the T terms, not their sum: its lambda is ce_weight / T. The metric `ce` is
    its mean over the tokens that have a loss, nats: all valid ones, or the masked ones under the
    absorbing process without ce_weight.
    """
    x0, valid, steps = batch["tokens"], batch["valid"], process.schedule.count
    readout = apply(params, xt, process.condition(t))
    if isinstance(process, D3PMAbsorbing):
        # the KL is q(x_s = x0 | x_t = m, x0) times the cross entropy, and 0 where x_t shows x0
        reveal = process.reveal(t - 1 / steps, t)[:, None]
        of_vb = jnp.where(valid & (xt == process.mask_id), steps * reveal, 0)
        weight = jnp.where(valid, of_vb + ce_weight, 0)
        weighted = readout.cross_entropy(x0, weight)
        ce = jax.lax.stop_gradient(weighted) / jnp.where(weight > 0, weight, 1)
        vb, loss = (of_vb * ce).sum(axis=1), weighted.sum(axis=1)
        tokens = (weight > 0).sum(axis=1)
    else:
        kl, ce = _kl(readout, x0, xt, t, process)
        vb = jnp.where(valid, steps * kl + process.prior_kl(x0), 0).sum(axis=1)
        ce = jnp.where(valid, ce, 0)
        loss, tokens = vb + ce_weight * ce.sum(axis=1), valid.sum(axis=1)
    return LossOutput(loss, vb, {"ce": ce.sum(axis=1) / jnp.maximum(tokens, 1)})


def d3pm_ce(
    apply: Apply, params: Params, batch: Batch, noise: Noise, process: D3PMProcess
) -> LossOutput:
    """E_t sum_i -log p(x0_i | x_t), t uniform on 1..T, all valid tokens. Not a bound."""
    xt, t = _draw(batch, noise, process)
    return d3pm_ce_at(apply, params, batch, xt, t, process)


def d3pm_ce_at(
    apply: Apply,
    params: Params,
    batch: Batch,
    xt: Array,
    t: Array,
    process: D3PMProcess,
) -> LossOutput:
    """sum_i -log p(x0_i | x_t), xt int32[b, L] at times t float[b]."""
    readout = apply(params, xt, process.condition(t))
    return LossOutput(readout.cross_entropy(batch["tokens"], batch["valid"]).sum(axis=1), None)


def _draw(batch: Batch, noise: Noise, process: D3PMProcess) -> tuple[Array, Array]:
    """(xt int32[b, L], t float32[b] on the grid 1/T .. 1)."""
    t = on_grid(noise.u, process.schedule.count)
    return process.corrupt(noise.keys, batch["tokens"], t, batch["valid"]), t


def _kl(
    readout: Readout, x0: Array, xt: Array, t: Array, process: StepProcess
) -> tuple[Array, Array]:
    """(KL of one step, cross entropy of x0), each float[b, L]."""
    if not process.by_sequence:
        reduce = functools.partial(step_kl, process)
        kl, ce = readout.read(reduce, x0, xt, jnp.broadcast_to(t[:, None], x0.shape))
        return kl, ce

    def of_sequence(readout: Readout, x0: Array, xt: Array, t: Array) -> tuple[Array, Array]:
        reduce = functools.partial(step_kl, process, t=t)
        kl, ce = readout.read(reduce, x0[None], xt[None])
        return kl[0], ce[0]

    kl, ce = readout.by_sequence(of_sequence, x0, xt, t)
    return kl, ce


def step_kl(
    process: StepProcess, logits: Array, x0: Array, xt: Array, t: Array
) -> tuple[Array, Array]:
    """(KL(q(x_s | x_t, x0) || p(x_s | x_t)), -log p(x0)), s = t - 1/T: float[N, V] -> float[N]."""
    s = t - 1 / process.schedule.count
    of_p = process.marginal(jax.nn.softmax(logits), s)
    kl = divergence(process.column(xt, s, t), process.row(x0, s), of_p)
    return kl, jax.nn.logsumexp(logits, axis=-1) - take_logit(logits, x0)


def divergence(to_xt: Array, of_x0: Array, of_p: Array) -> Array:
    """KL(q || p), q ~ q(x_t | x_s) q(x_s | x0) and p ~ q(x_t | x_s) sum_x0 q(x_s | x0) p(x0).

    With d = log p/q the KL is summed as sum q (e^d - 1 - d), which is the same because both sum to
    1: no term is negative, and where d is small it keeps its digits. sum -q d would lose, in
    float32, the 1/T that a step is about. Each [..., V] -> float[...].
    """
    z_q, z_p = (jnp.maximum((to_xt * x).sum(-1, keepdims=True), FLOOR) for x in (of_x0, of_p))
    q, p = to_xt * of_x0 / z_q, to_xt * of_p / z_p
    ratio = jnp.maximum(of_p, FLOOR) / jnp.where(q > 0, of_x0, 1)
    d = jnp.log(jnp.where(q > 0, ratio, 1)) - jnp.log(z_p / z_q)
    small = (q > 0) & (d < 1)
    near = jnp.where(small, d, 0)
    return jnp.where(small, q * (jnp.expm1(near) - near), p - q * (1 + d)).sum(-1)
