"""The batches and the noise that objectives are given in tests."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.diffusion.randomness import example_keys, step_key, stratified
from ddm_jax.objectives.signature import Batch, Noise


def batch_of(tokens: np.ndarray, valid: np.ndarray | bool = True) -> Batch:
    """A batch of int[b, L]; `valid`, a bool that broadcasts to them, is False at padding."""
    return {"tokens": tokens, "valid": np.broadcast_to(valid, np.shape(tokens))}


@functools.partial(jax.jit, static_argnums=0)
def noise_of(count: int, step: int = 5) -> Noise:
    """The noise of the examples 0 .. count - 1 of a training step."""
    key, index = step_key(0, step), jnp.arange(count)
    return Noise(stratified(key, index, count), example_keys(key, index))
