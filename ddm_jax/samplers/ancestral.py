"""Tweedie ancestral sampling of the absorbing process: every position on its own clock.

From t to s < t a masked position is revealed with probability (alpha_s - alpha_t) / (1 - alpha_t),
and then takes a token from p(x0_i given x_t) (SEDD section 4.2, RADD section 4, MDLM eq. 7).
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.categorical import categorical
from ddm_jax.diffusion.randomness import example_keys, uniforms
from ddm_jax.samplers.signature import SampleSpec, Stats


def ancestral(
    apply: Callable,
    params: Any,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: Absorbing,
    spec: SampleSpec,
) -> tuple[Array, Stats]:
    """Samples in spec.steps equal steps of time, from t = 1 to 0.

    Args:
      apply, params: the network.
      key: one for the call; each sequence draws from its own.
      prompt: int32[B, L], read where `fixed` and ignored elsewhere.
      fixed: bool[B, L], positions that keep the prompt's token.
      process: the absorbing process, its schedule and mask id.
      spec: the number of steps.

    Returns:
      tokens int32[B, L], without a mask, and Stats with nfe = spec.steps.
    """
    masks = process.prior(prompt.shape)
    keys = example_keys(key, jnp.arange(prompt.shape[0]))

    def step(i: Array, x: Array) -> Array:
        t, s = 1 - i / spec.steps, 1 - (i + 1) / spec.steps
        # at the last step all is revealed, also where the schedule leaves 1 - alpha(0) > 0
        chance = jnp.where(i == spec.steps - 1, 1.0, process.reveal(s, t))
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, i)
        when, what = jnp.moveaxis(jax.vmap(jax.random.split)(step_keys), 1, 0)
        reveal = (x == process.mask_id) & (uniforms(when, x.shape[1:]) < chance)
        sigma = jnp.full(x.shape[0], process.schedule.sigma_bar(t))
        x0 = categorical(what, apply(params, x, sigma).logits())
        return jnp.where(reveal, x0, x)

    tokens = jax.lax.fori_loop(0, spec.steps, step, jnp.where(fixed, prompt, masks))
    return tokens, Stats(nfe=jnp.full(prompt.shape[0], spec.steps))
