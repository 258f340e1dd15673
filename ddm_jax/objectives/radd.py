"""RADD's four losses (Ou et al. 2024, arXiv:2406.03736): four bounds, no time input.

All four weigh the cross entropy of the masked tokens; they differ in how the number of masks is
drawn. In expectation they are equal, up to the truncation of t at 1e-3 (sections 3.2, 3.3):

    t-DSE   t ~ U(eps, 1), score entropy of s_y = p(y) / (e^sigma_bar - 1)
    t-DCE   t ~ U(eps, 1), weight sigma / (e^sigma_bar - 1)
    lambda-DCE   lambda ~ U(0, 1), each token masked with probability lambda, weight 1 / lambda
    AO      k ~ U{1..n}, k tokens masked, weight n / k: any-order autoregression

Each comes as the objective, which draws the corruption, and as `*_at`, which takes it.
"""

import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import Absorbing, mask_exactly, mask_independently
from ddm_jax.models.network import Apply, Params
from ddm_jax.models.readout import token_nats
from ddm_jax.objectives.masked import masked_cross_entropy
from ddm_jax.objectives.signature import Batch, LossOutput, Noise, share, uniform_time


def t_dse(
    apply: Apply, params: Params, batch: Batch, noise: Noise, process: Absorbing
) -> LossOutput:
    """Denoising score entropy over time (RADD eq. 3.4). Optimises a bound on -log p(x0)."""
    t = uniform_time(noise.u)
    xt = process.corrupt(noise.keys, batch["tokens"], t, batch["valid"])
    return t_dse_at(apply, params, batch, xt, t, process)


def t_dse_at(
    apply: Apply, params: Params, batch: Batch, xt: Array, t: Array, process: Absorbing
) -> LossOutput:
    """sigma(t) sum_masked [sum_y s_y - r log s_x0 + r (log r - 1)], r = 1/(e^sigma_bar - 1).

    The score s_y = r p(y) of a normalised p sums to r, so that this is the loss of `t_dce_at` for
    every p (SEDD theorem 3.6 with RADD theorem 1). xt int32[b, L] at times t float[b].
    """
    masked = (xt == process.mask_id) & batch["valid"]

    def entropy(logits: Array, x0: Array, r: Array) -> Array:
        log_score = jnp.log(r) - token_nats(logits, x0)
        return r - r * log_score + r * (jnp.log(r) - 1)

    r = jnp.broadcast_to(1 / jnp.expm1(process.schedule.sigma_bar(t))[:, None], xt.shape)
    weight = jnp.where(masked, process.schedule.rate(t)[:, None], 0)
    loss = apply(params, xt).losses(entropy, weight, batch["tokens"], r).sum(axis=1)
    return LossOutput(loss, loss, {"masked": share(masked, batch)})


def t_dce(
    apply: Apply, params: Params, batch: Batch, noise: Noise, process: Absorbing
) -> LossOutput:
    """Denoising cross entropy over time (RADD eq. 3.5). Optimises a bound on -log p(x0)."""
    t = uniform_time(noise.u)
    xt = process.corrupt(noise.keys, batch["tokens"], t, batch["valid"])
    return t_dce_at(apply, params, batch, xt, t, process)


def t_dce_at(
    apply: Apply, params: Params, batch: Batch, xt: Array, t: Array, process: Absorbing
) -> LossOutput:
    """sigma(t) / (e^sigma_bar(t) - 1) sum_masked -log p(x0_i given x_t), t float[b].

    The published code adds sigma log(e^sigma_bar - 1) / (e^sigma_bar - 1) for each masked token,
    which no parameter changes.
    """
    weight = process.schedule.weight(t)
    return masked_cross_entropy(apply(params, xt), batch, xt, process.mask_id, weight)


def lambda_dce(
    apply: Apply, params: Params, batch: Batch, noise: Noise, process: Absorbing
) -> LossOutput:
    """Cross entropy over the mask ratio lambda (RADD eq. 3.6). Optimises a bound on -log p(x0)."""
    lam = noise.u
    x0, valid = batch["tokens"], batch["valid"]
    xt = mask_independently(noise.keys, x0, lam, process.mask_id, movable=valid)
    return lambda_dce_at(apply, params, batch, xt, lam, process)


def lambda_dce_at(
    apply: Apply, params: Params, batch: Batch, xt: Array, lam: Array, process: Absorbing
) -> LossOutput:
    """(1 / lambda) sum_masked -log p(x0_i given x_lambda), lambda float[b]."""
    return masked_cross_entropy(apply(params, xt), batch, xt, process.mask_id, 1 / lam)


def any_order(
    apply: Apply, params: Params, batch: Batch, noise: Noise, process: Absorbing
) -> LossOutput:
    """Any-order autoregression (RADD eq. 3.7). Optimises a bound on -log p(x0)."""
    n = batch["valid"].sum(axis=1)
    k = jnp.minimum(1 + jnp.floor(noise.u * n).astype(jnp.int32), n)
    xt = mask_exactly(noise.keys, batch["tokens"], k, process.mask_id, movable=batch["valid"])
    return any_order_at(apply, params, batch, xt, k, process)


def any_order_at(
    apply: Apply, params: Params, batch: Batch, xt: Array, k: Array, process: Absorbing
) -> LossOutput:
    """(n / k) sum_masked -log p(x0_i given the n - k others), k int32[b] in 1..n."""
    weight = batch["valid"].sum(axis=1) / jnp.maximum(k, 1)
    return masked_cross_entropy(apply(params, xt), batch, xt, process.mask_id, weight)
