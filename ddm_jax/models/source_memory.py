"""What a network keeps of a source text, and the length of the target that it predicts from it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ddm_jax.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Memory:
    """A source text as the layers of the target see it.

    Attributes:
      k: keys of the source for every layer of the target, [layers, B, S, H, D / H]; within a layer
        those of this layer, [B, S, H, D / H].
      v: the values, likewise.
      valid: bool[B, S], the source's real tokens; the rest is never seen.
      length_logits: float32[B, max_length] (float64 when the network computes in it), of the
        target's number of words.
    """

    k: Array
    v: Array
    valid: Array
    length_logits: Array


class LengthHead(nnx.Module):
    """Length logits from the mean of the source's hidden states, as RDM's (arXiv:2302.05737)."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        shape = config.width, config.max_length
        self.kernel = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), shape))

    def __call__(self, hidden: Array, valid: Array) -> Array:
        """Length logits, float32[B, max_length] or wider.

        Args:
          hidden: [B, S, D], the source's final hidden states.
          valid: bool[B, S], the tokens that the mean is over.
        """
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        total = jnp.where(valid[..., None], hidden, 0).sum(axis=1, dtype=wide)
        mean = total / valid.sum(axis=1, keepdims=True)
        return jnp.dot(mean.astype(wide), self.kernel[...].astype(wide))
