"""GIDD: the continuous-time bound of hybrid noise (von Rütte et al. 2025, arXiv:2503.04482).

The bound is the integral over t of w(x_t, x_0) [KL(q(. | x_0) || q^theta) + IS(q, q^theta at x_t)].
Training replaces w, which is infinite at both ends, by a tamer weight. In the paper's time tau,
with a = 1 - tau and c = B sqrt(tau a) (diffusion/hybrid.py),

    tau a w = 1 at a mask, 1/2 at a wrong token, c / (2 (V a + c)) at x_0.
"""

import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.hybrid import Hybrid
from ddm_jax.models.network import Apply, Params
from ddm_jax.objectives.signature import Batch, LossOutput, Noise
from ddm_jax.objectives.udlm import divergence, noised

WEIGHTINGS = ("dynamic", "clamped", "elbo")


def gidd(
    apply: Apply,
    params: Params,
    batch: Batch,
    noise: Noise,
    process: Hybrid,
    weighting: str = "dynamic",
) -> LossOutput:
    """GIDD's loss over t ~ U(0, 1). Optimises a bound on -log p(x0), or that bound reweighted.

    t = sin(pi u / 2)^2 is drawn more often near the ends, and each draw weighs dt/du. The share of
    redrawn tokens is sqrt(t) at a small t: uniform times would give the bound infinite variance,
    and times from the published 1e-4 on would leave 0.01 nats a token or more of it out.
    """
    t = jnp.minimum(jnp.sin(jnp.pi / 2 * noise.u) ** 2, 1 - 2.0**-24)  # not 1: alpha may be 0 there
    xt = process.corrupt(noise.keys, batch["tokens"], t, batch["valid"])
    per_draw = jnp.pi / 2 * jnp.sin(jnp.pi * jnp.minimum(noise.u, 1 - noise.u))
    return gidd_at(apply, params, batch, xt, t, process, weighting, per_draw)


def gidd_at(
    apply: Apply,
    params: Params,
    batch: Batch,
    xt: Array,
    t: Array,
    process: Hybrid,
    weighting: str = "elbo",
    per_draw: Array | float = 1.0,
) -> LossOutput:
    """The integrand at xt int32[b, L] and t float[b], times `per_draw` (1 over the density of t).

    weighting: of `loss`; that of `bound` is always "elbo", the w above, and `bound` has
    KL(q(x_1 | x_0) || prior) too. "clamped": w, at most 1. "dynamic": 2 at a mask, 1 at a wrong
    token, B/V sqrt(tau / a), at most 2, at x_0; close to 2 tau a w.
    """
    x0, valid, size = batch["tokens"], batch["valid"], process.vocab_size
    clean, masked, redrawn = (x[:, None] for x in process.levels(t))
    each = redrawn / size
    readout = apply(params, xt, process.condition(t))

    def by_token(at_mask: Array | float, at_other: Array | float, at_x0: Array | float) -> Array:
        return jnp.where(xt == size, at_mask, jnp.where(xt == x0, at_x0, at_other))

    elbo = by_token(1, 0.5, each / (clean + each) / 2) / (masked * clean)
    weight = {
        "elbo": lambda: elbo,
        "clamped": lambda: jnp.minimum(elbo, 1),
        "dynamic": lambda: by_token(2, 1, jnp.minimum(each / clean, 2)),
    }[weighting]()
    slope = process.schedule.weight(t) * process.schedule.one_minus_alpha(t)  # d tau / dt
    per_unit = (per_draw * slope)[:, None] / (1 + redrawn)
    weight = jnp.where(valid, per_unit * weight, 0)
    losses = divergence(readout, x0, xt, weight, clean, each, masked)
    # where no weight is elbo is 0 too
    elbos = jnp.where(weight > 0, per_unit * elbo / weight, 0) * losses
    bound = elbos.sum(axis=1) + valid.sum(axis=1) * process.prior_kl()
    return LossOutput(losses.sum(axis=1), bound, noised(batch, xt))
