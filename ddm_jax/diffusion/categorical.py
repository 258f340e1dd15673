"""Exact draws from categorical distributions, with the right tails.

A draw is a race of exponentials, argmin_v E_v / p_v with E_v ~ Exp(1): the Gumbel-max trick without
its table of Gumbels. The winners have the SMALL E_v, so these are made from -log1p(-u), whose floor
is 2^-33: an event of probability 1e-9 keeps it within 1 %. jax's default noise, -log(-log u), runs
out at 1.2e-7 in float32 and 8e-3 in bfloat16, which silently lowers the temperature.
"""

import jax
import jax.numpy as jnp

from ddm_jax.diffusion.randomness import uniforms


def categorical(keys: jax.Array, logits: jax.Array) -> jax.Array:
    """Draw v with probability softmax(logits)_v: int32[...] from logits[..., V] of any float dtype.

    Args:
      keys: one key for all of logits, or keys[B, ...] whose shape is the start of that of
        logits[B, ..., V]; then each draw depends on its own key only.
      logits: read as float32 (bfloat16 ones give the law of their values, not of a rounded race). A
        logit of -inf is never drawn; a row of only -inf gives 0.
    """
    return race(uniforms(keys, logits.shape[keys.ndim :]), logits)


def race(u: jax.Array, logits: jax.Array) -> jax.Array:
    """The draw for given uniforms u in (0, 1): float32[..., V], logits[..., V] -> int32[...]."""
    logits = logits.astype(jnp.float32)
    # the best logit at 0: large ones would swallow the low digits of the noise
    best = jnp.max(logits, axis=-1, keepdims=True)
    gumbel = -jnp.log(-jnp.log1p(-u))
    return jnp.argmax(logits - best + gumbel, axis=-1).astype(jnp.int32)
