"""ReMDM: masks are revealed, and tokens are masked again (Wang et al. 2025, arXiv:2503.00307).

q(x_s | x_t, x_0) of its eq. 6: a token of x_t turns into the mask with probability sigma, a mask
into x_0 with (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t). For every sigma from 0 to min(1,
(1 - alpha_s) / alpha_t), q(x_s | x_0) is that of masking, so the same network can be used. With
sigma = 0 it is `ancestral`.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import MaskingProcess
from ddm_jax.diffusion.randomness import uniforms
from ddm_jax.models.network import Apply, Params
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.ancestral import through_time
from ddm_jax.samplers.draw import fill
from ddm_jax.samplers.signature import SampleSpec, Stats


def remdm(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: MaskingProcess,
    spec: SampleSpec,
    strategy: str = "cap",
    eta: float = 0.04,
) -> tuple[Array, Stats]:
    """Samples in spec.steps equal steps of time, of which the last reveals all.

    Arguments and results are those of `ancestral`, with the options below.

    Args:
      strategy: "cap" for sigma = min(eta, sigma_max), "rescale" for eta sigma_max, where sigma_max
        is the bound above (section 4.1).
      eta: from 0 to 1, how much is masked again.
    """

    def sigma(s: Array, t: Array) -> Array:
        schedule = process.schedule
        largest = jnp.minimum(1, schedule.one_minus_alpha(s) / schedule.alpha(t))
        return jnp.minimum(eta, largest) if strategy == "cap" else eta * largest

    def step(keys: Array, x: Array, readout: Readout, s: Array, t: Array) -> Array:
        return remask(keys, x, fixed, readout, process, sigma(s, t), s, t, spec)

    return through_time(step, apply, params, key, prompt, fixed, process, spec)


def remask(
    keys: Array,
    x: Array,
    fixed: Array,
    readout: Readout,
    process: MaskingProcess,
    sigma: Array,
    s: Array,
    t: Array,
    spec: SampleSpec,
) -> Array:
    """One step from t to s. At s = 0 all is revealed and nothing is masked again.

    Args:
      keys: key[B].
      x: int32[B, L], tokens at time t.
      fixed: bool[B, L].
      readout: of x.
      process: the masking process.
      sigma: float[], the probability that a token is masked again.
      s: float[].
      t: float[].
      spec: how tokens are drawn.

    Returns:
      int32[B, L], tokens at time s.
    """
    when, what = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    u = uniforms(when, x.shape[1:])
    alpha, noise = process.schedule.alpha(t), process.schedule.one_minus_alpha(t)
    chance = jnp.where(s <= 0, 1.0, process.reveal(s, t) + sigma * alpha / noise)
    sigma = jnp.where(s <= 0, 0.0, sigma)
    masked = (x == process.mask_id) & ~fixed
    revealed = fill(what, x, masked & (u < chance), readout, spec)
    return jnp.where(~masked & ~fixed & (u < sigma), process.mask_id, revealed)
