"""SEDD's analytic sampler (Lou et al. 2023, section 4.2, "Tweedie tau-leaping"), uniform process.

It goes from t to s < t by the score itself, with no p(x0) in between (theorem 4.2):

    p(x_s = y | x_t) ~ [exp(-d Q) s]_y exp(d Q)[x_t, y],   d = sigma_bar(t) - sigma_bar(s)

per position, Q = (1 1^T - V I)/V and s_y = p_t(y) / p_t(x_t). With the exact score a lone position
moves by its true reverse law, in steps of any size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.categorical import categorical
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.samplers.ancestral import ancestral
from ddm_jax.samplers.signature import SampleSpec, Stats


def analytic(
    apply: Callable,
    params: Any,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: Uniform,
    spec: SampleSpec,
) -> tuple[Array, Stats]:
    """Samples in spec.steps equal steps of time, from t = 1 to 0; the last one is SEDD's denoiser.

    As `ancestral`, for a network whose logits are log s_y.
    """
    by_score = _ByScore(process.schedule, process.vocab_size)
    return ancestral(apply, params, key, prompt, fixed, by_score, spec)


@dataclass(frozen=True)
class _ByScore(Uniform):
    """The uniform process, whose reverse reads logits as log scores."""

    def reverse(self, keys: Array, xt: Array, logits: Array, s: Array, t: Array) -> Array:
        weights = tweedie(logits, xt, *self.between(s, t))
        return categorical(keys, jnp.log(weights))


def tweedie(log_score: Array, xt: Array, kept: Array, redrawn: Array) -> Array:
    """p(x_s | x_t) of each position, up to a factor; 0 where a wrong score would make it negative.

    Args:
      log_score: float[B, L, V], what it says of xt is taken to be 0. xt: int32[B, L].
      kept, redrawn: e^-d and 1 - e^-d, the probability that a token is redrawn between s and t;
        float[] or of a shape that broadcasts with [B, L, V].

    Returns:
      float[B, L, V].
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
