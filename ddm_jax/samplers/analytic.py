"""SEDD's analytic sampler, "Tweedie tau-leaping" (Lou et al. 2023, section 4.2).

It steps from t to s < t by the score itself, without p(x0) in between (theorem 4.2):

    p(x_s = y | x_t) ~ [exp(-d Q) s]_y exp(d Q)[x_t, y],   d = sigma_bar(t) - sigma_bar(s)

per position, s_y = p_t(y) / p_t(x_t). With the exact score a single position moves by its true
reverse law, in steps of any size. A law is given as the chance of leaving x_t and the logits of the
new token: temperature, top-k and top-p change only the second.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import uniforms
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.models.network import Apply, Params
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.ancestral import through_time
from ddm_jax.samplers.draw import fill
from ddm_jax.samplers.signature import SampleSpec, Stats

# (logits [..., V], xt [...], s, t) -> the chance of leaving xt [...], above 1 where it is certain,
# and the logits of the new token [..., V]; s < t broadcast with xt, and s = 0 is the last step
Law = Callable[[Array, Array, Array, Array], tuple[Array, Array]]


def analytic(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: Absorbing | Uniform,
    spec: SampleSpec,
    scale_by_sigma: bool = True,
) -> tuple[Array, Stats]:
    """Samples in spec.steps equal steps of time, from t = 1 to 0; the last one is SEDD's denoiser.

    Arguments and results are those of `ancestral`, for the networks of objectives/sedd.py.
    scale_by_sigma is that of `sedd.absorb`, and is not read for uniform noise. Under uniform noise
    a network takes fixed tokens for noised ones, so that the law given them is only roughly the
    conditional one, for any number of steps.
    """
    law = analytic_law(process, scale_by_sigma)
    return jump(apply, params, key, prompt, fixed, process, spec, law)


def jump(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: Absorbing | Uniform,
    spec: SampleSpec,
    law: Law,
) -> tuple[Array, Stats]:
    """Samples by a law: each position on its own in every step. The rest is as in `ancestral`."""

    def step(keys: Array, x: Array, readout: Readout, s: Array, t: Array) -> Array:
        when, what = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
        chance = readout.read(lambda logits, xt: law(logits, xt, s, t)[0], x)
        chosen = ~fixed & (uniforms(when, x.shape[1:]) < chance)
        jumps = _Jumps(readout, x, lambda logits, xt: law(logits, xt, s, t)[1])
        return fill(what, x, chosen, jumps, spec)

    return through_time(step, apply, params, key, prompt, fixed, process, spec)


@dataclass(frozen=True)
class _Jumps:
    """The readout that `fill` draws from: its logits are those of where to jump from x_t."""

    readout: Readout
    xt: Array
    where_to: Callable[[Array, Array], Array]

    @property
    def bias(self) -> Array:
        return self.readout.bias

    def at(self, positions: Array) -> "_Jumps":
        xt = jnp.take_along_axis(self.xt, positions, axis=1)
        return _Jumps(self.readout.at(positions), xt, self.where_to)

    def logits(self) -> Array:
        return self.where_to(self.readout.logits(), self.xt)


def analytic_law(process: Absorbing | Uniform, scale_by_sigma: bool = True) -> Law:
    """Theorem 4.2 for one of the two processes."""
    if isinstance(process, Uniform):
        return _uniform_law(process)
    return _masking_law(process, scale_by_sigma)


def _masking_law(process: Absorbing, scale_by_sigma: bool) -> Law:
    """A mask turns into y with probability (e^d - 1) s_y.

    So the chance of leaving it is that of `ancestral`, times `mass`.
    """

    def law(logits: Array, xt: Array, s: Array, t: Array) -> tuple[Array, Array]:
        chance = process.reveal(s, t) * mass(process, logits, t, scale_by_sigma)
        return from_masks(process, chance, xt, s), logits

    return law


def _uniform_law(process: Uniform) -> Law:
    def law(logits: Array, xt: Array, s: Array, t: Array) -> tuple[Array, Array]:
        between = process.between(jnp.asarray(s)[..., None], jnp.asarray(t)[..., None])
        weights = tweedie(logits, xt, *between)
        others = jnp.where(xt[..., None] == jnp.arange(logits.shape[-1]), 0, weights)
        return others.sum(axis=-1) / weights.sum(axis=-1), jnp.log(others)

    return law


def from_masks(process: Absorbing, chance: Array, xt: Array, s: Array) -> Array:
    """The chance at the masks, 0 elsewhere, and 1 at the masks of the last step."""
    return jnp.where(xt == process.mask_id, jnp.where(s <= 0, 1.0, chance), 0.0)


def mass(process: Absorbing, logits: Array, t: Array, scale_by_sigma: bool) -> Array:
    """(e^sigma_bar - 1) sum_y s_y of a mask, 1 where the score is true: float[..., V] -> [...].

    scale_by_sigma: whether logits are log s_y + log(e^sigma_bar - 1) + log V, or log s_y itself.
    """
    lse = jax.nn.logsumexp(logits, axis=-1)
    if scale_by_sigma:
        return jnp.exp(lse) / logits.shape[-1]
    # log(e^sigma_bar - 1), which would overflow
    schedule = process.schedule
    return jnp.exp(lse + jnp.log(schedule.one_minus_alpha(t)) + schedule.sigma_bar(t))


def tweedie(log_score: Array, xt: Array, kept: Array, redrawn: Array) -> Array:
    """p(x_s | x_t) under uniform noise, up to a factor; 0 where a wrong score makes it negative.

    Args:
      log_score: float[..., V]; its entry of xt is taken to be 0.
      xt: int32[...].
      kept: e^-d; float[] or of a shape that broadcasts with [..., V].
      redrawn: 1 - e^-d, the probability that a token is redrawn between s and t; shaped as kept.

    Returns:
      float[..., V]; Q = (1 1^T - V I)/V.
    """
    vocab_size = log_score.shape[-1]
    is_xt = xt[..., None] == jnp.arange(vocab_size)
    # a true score is at most V e^sigma_bar; e^60 can still be summed over any vocabulary
    log_score = jnp.where(is_xt, 0, jnp.minimum(log_score, 60))
    score, above_one = jnp.exp(log_score), jnp.expm1(log_score)
    mean, mean_above = (x.mean(axis=-1, keepdims=True) for x in (score, above_one))
    # e^-d exp(-d Q) s = s - redrawn mean(s). At the start kept is 1e-9 and all scores are as close
    # to 1, where float32 holds their differences only as expm1
    close = abs(log_score).max(axis=-1, keepdims=True) < 0.5
    earlier = jnp.where(close, kept * mean + (above_one - mean_above), score - redrawn * mean)
    return jnp.maximum(earlier, 0) * (kept * is_xt + redrawn / vocab_size)
