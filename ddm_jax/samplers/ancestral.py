"""Ancestral sampling of any process: from t to s < t by sum_x0 q(x_s | x_t, x0) p(x0 | x_t).

For the absorbing process this is Tweedie tau-leaping, every position on its own clock (SEDD section
4.2, RADD section 4, MDLM eq. 7), and event_driven.py has the same law in fewer evaluations; for
the others it is the reverse process of D3PM, eq. 4.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.process import Process
from ddm_jax.diffusion.randomness import example_keys
from ddm_jax.models.network import Apply, Params
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.draw import filtered
from ddm_jax.samplers.signature import Integer, SampleSpec, Stats


def ancestral(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: Process,
    spec: SampleSpec,
) -> tuple[Array, Stats]:
    """Samples in spec.steps equal steps of time, from t = 1 to 0.

    Args:
      apply: the network.
      params: of the network.
      key: one for the call; each sequence draws from its own.
      prompt: int32[B, L], read where `fixed` and ignored elsewhere.
      fixed: bool[B, L], positions that keep the prompt's token.
      process: the forward process: its `prior`, `condition` and `reverse`.
      spec: the number of steps, and how tokens are drawn (signature.py).

    Returns:
      tokens int32[B, L], without a mask, and Stats with nfe = spec.steps.
    """

    def step(keys: Array, x: Array, readout: Readout, s: Array, t: Array) -> Array:
        return process.reverse(keys, x, filtered(readout.logits(), spec), s, t)

    return through_time(step, apply, params, key, prompt, fixed, process, spec)


def through_time(
    step: Callable[[Array, Array, Readout, Array, Array], Array],
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: Process,
    spec: SampleSpec,
) -> tuple[Array, Stats]:
    """The loop of every sampler that evaluates the network at each of spec.steps equal steps.

    Args:
      step: (keys key[B], x_t int32[B, L], its readout, s float[], t float[]) -> x_s; the last s is
        exactly 0. Its changes at fixed positions are undone.
      apply, params, key, prompt, fixed, process, spec: as in `ancestral`.

    Returns:
      As `ancestral`.
    """
    count, length = prompt.shape
    keys = example_keys(key, jnp.arange(count))

    def at(i: Integer) -> Array:
        return jax.vmap(jax.random.fold_in, (0, None))(keys, i)

    def one(i: Array, x: Array) -> Array:
        t, s = 1 - i / spec.steps, 1 - (i + 1) / spec.steps
        s = jnp.where(i == spec.steps - 1, 0.0, s)
        readout = apply(params, x, jnp.full(count, process.condition(t)))
        return jnp.where(fixed, prompt, step(at(i), x, readout, s, t))

    start = jnp.where(fixed, prompt, process.prior(at(spec.steps), length))
    tokens = jax.lax.fori_loop(0, spec.steps, one, start)
    return tokens, Stats(nfe=jnp.full(count, spec.steps))
