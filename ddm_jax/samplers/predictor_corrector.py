"""The psi samplers: a reverse step mixed with full denoising and noising again (Duo's code).

x_s ~ kappa q(x_s | x_t) + (1 - kappa) sum_x0 q(x_s | x_0) q(x_0 | x_t), per position, where
q(x_s | x_t) is the step of `ancestral`: kappa = 1 is `ancestral`, and below it a token that is
already revealed may change with its neighbours. For masking this is the rule of remasking.py with
sigma = (1 - kappa)(1 - alpha_s).
"""

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import MaskingProcess
from ddm_jax.diffusion.categorical import categorical
from ddm_jax.diffusion.randomness import uniforms
from ddm_jax.diffusion.uniform import UniformProcess
from ddm_jax.models.network import Apply, Params
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.ancestral import through_time
from ddm_jax.samplers.draw import filtered
from ddm_jax.samplers.remasking import remask
from ddm_jax.samplers.signature import SampleSpec, Stats


def predictor_corrector(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: MaskingProcess | UniformProcess,
    spec: SampleSpec,
    kappa: float = 0.9,
) -> tuple[Array, Stats]:
    """Samples in spec.steps equal steps of time, of which the last leaves no noise.

    Arguments and results are those of `ancestral`; kappa, from 0 to 1, is the share of the
    ancestral step.
    """

    def step(keys: Array, x: Array, readout: Readout, s: Array, t: Array) -> Array:
        if isinstance(process, MaskingProcess):
            sigma = (1 - kappa) * process.schedule.one_minus_alpha(s)
            return remask(keys, x, fixed, readout, process, sigma, s, t, spec)
        return mix(keys, x, filtered(readout.logits(), spec), process, kappa, s, t)

    return through_time(step, apply, params, key, prompt, fixed, process, spec)


def mix(
    keys: Array, x: Array, logits: Array, process: UniformProcess, kappa: float, s: Array, t: Array
) -> Array:
    """One step from t to s: key[B], int32[B, L], float[B, L, V], float[], float[] -> int32[B, L].

    Each position goes to s at once, or to 0 and from there to s.
    """
    which, what, noise = jnp.moveaxis(jax.vmap(lambda key: jax.random.split(key, 3))(keys), 1, 0)
    at_once = (uniforms(which, x.shape[1:]) < kappa) | (s <= 0)
    first = jnp.where(at_once, s, 0.0)[..., None]
    law = process.reverse_logits(x, logits, first, t)
    # where two times are one step of a grid x_t stays, even if p rules it out
    new = jnp.where(law.max(axis=-1) > -jnp.inf, categorical(what, law), x)
    return process.corrupt(noise, new, jnp.full(len(x), s), movable=~at_once)
