"""Euler steps of the reverse process (Lou et al. 2023, section 4.2; Ou et al. 2024, section 4).

A position jumps from x_t to y between t and t - dt with probability dt sigma(t) Q(x_t, y) s_y, cut
off where the sum over y exceeds 1: the steps of analytic.py to first order in dt. The last step is
SEDD's denoiser, as there.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.models.network import Apply, Params
from ddm_jax.samplers.analytic import Law, analytic_law, from_masks, jump, mass
from ddm_jax.samplers.signature import SampleSpec, Stats


def euler(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: Absorbing | Uniform,
    spec: SampleSpec,
    scale_by_sigma: bool = True,
) -> tuple[Array, Stats]:
    """Samples by SEDD's Euler rule; arguments and results are those of `analytic`."""
    law = euler_law(process, scale_by_sigma)
    return jump(apply, params, key, prompt, fixed, process, spec, law)


def euler_x0(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: Absorbing,
    spec: SampleSpec,
) -> tuple[Array, Stats]:
    """Samples by RADD's Euler rule; arguments and results are those of `ancestral`."""
    return jump(apply, params, key, prompt, fixed, process, spec, euler_x0_law(process))


def euler_law(process: Absorbing | Uniform, scale_by_sigma: bool = True) -> Law:
    """The Euler rule for log scores; its arguments are those of `analytic_law`."""
    if isinstance(process, Uniform):
        return _uniform_law(process)
    return _masking_law(process, scale_by_sigma)


def _masking_law(process: Absorbing, scale_by_sigma: bool) -> Law:
    def law(logits: Array, xt: Array, s: Array, t: Array) -> tuple[Array, Array]:
        chance = (t - s) * process.schedule.weight(t) * mass(process, logits, t, scale_by_sigma)
        return from_masks(process, chance, xt, s), logits

    return law


def _uniform_law(process: Uniform) -> Law:
    denoise = analytic_law(process)

    def law(logits: Array, xt: Array, s: Array, t: Array) -> tuple[Array, Array]:
        vocab_size = logits.shape[-1]
        others = jnp.where(xt[..., None] == jnp.arange(vocab_size), -jnp.inf, logits)
        rate = process.schedule.rate(t) / vocab_size * jnp.exp(jax.nn.logsumexp(others, axis=-1))
        last = jnp.asarray(s) <= 0
        chance, where_to = denoise(logits, xt, s, t)
        return (
            jnp.where(last, chance, (t - s) * rate),
            jnp.where(last[..., None], where_to, others),
        )

    return law


def euler_x0_law(process: Absorbing) -> Law:
    """The rule for logits of p(x0 | x_t) under masking, whose score is p(y) / (e^sigma_bar - 1)."""

    def masked(logits: Array, xt: Array, s: Array, t: Array) -> tuple[Array, Array]:
        return from_masks(process, (t - s) * process.schedule.weight(t), xt, s), logits

    return masked
