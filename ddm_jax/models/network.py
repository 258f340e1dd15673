"""The functional boundary: a network is two pure functions over a plain nested dict of arrays.

Nothing outside models/ sees Flax. The head is read last and only as far as asked: losses take the
logit of the target and the log normaliser, samplers the full logits.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ddm_jax.config import ModelConfig
from ddm_jax.models.transformer import Constrain, Transformer

Params = dict
VOCAB_MULTIPLE = 128
LOGIT_BYTES = 2**28  # of float32 logits that `Readout.target` holds at once


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Readout:
    """Final hidden states [B, L, D] with the head that reads them.

    `kernel` is [D, V_pad] and `bias` [V_pad]; only the first `vocab_size` ids are tokens: the mask
    and the padding never receive probability.
    """

    hidden: Array
    kernel: Array
    bias: Array
    vocab_size: int = field(metadata={"static": True})

    def logits(self) -> Array:
        """float32[B, L, V] (float64 when the network computes in it)."""
        return self._logits(self.hidden)[..., : self.vocab_size]

    def target(self, targets: Array) -> tuple[Array, Array]:
        """Logit of each target and log sum exp over the vocabulary.

        Args:
          targets: int32[B, L], ids below `vocab_size`.

        Returns:
          (logit, lse), each float32[B, L]; cross entropy is lse - logit. At most LOGIT_BYTES of
          logits exist at once: beyond that the positions are read in chunks and the backward pass
          computes their logits again.
        """
        positions = targets.size
        hidden = self.hidden.reshape(positions, -1)
        chunks = -(-positions * self.bias.shape[0] * 4 // LOGIT_BYTES)
        if chunks == 1:
            logit, lse = self._target(hidden, targets.reshape(-1))
        else:
            pad = -positions % chunks
            rows = jnp.pad(hidden, ((0, pad), (0, 0))).reshape(chunks, -1, hidden.shape[-1])
            ids = jnp.pad(targets.reshape(-1), (0, pad)).reshape(chunks, -1)
            logit, lse = jax.lax.map(jax.checkpoint(lambda rc: self._target(*rc)), (rows, ids))
        return tuple(x.reshape(-1)[:positions].reshape(targets.shape) for x in (logit, lse))

    def _target(self, hidden: Array, targets: Array) -> tuple[Array, Array]:
        logits = self._logits(hidden)
        logit = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return logit, jax.nn.logsumexp(logits, axis=-1)

    def _logits(self, hidden: Array) -> Array:
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        kernel = self.kernel.astype(hidden.dtype)
        logits = jnp.dot(hidden, kernel, preferred_element_type=wide) + self.bias
        is_token = jnp.arange(self.bias.shape[0]) < self.vocab_size
        return jnp.where(is_token, logits, -jnp.inf)


@dataclass(frozen=True)
class Network:
    """`init(key) -> params` and `apply(params, tokens, sigma, dropout_keys) -> Readout`.

    tokens: int32[B, L]. sigma: float32[B], required when the network is conditioned on time and
    ignored when it is not. dropout_keys: key[B], one for each example, or None to switch dropout
    off. params: nested dict of float32 arrays, layers stacked on their first axis.
    """

    init: Callable[[Array], Params]
    apply: Callable[..., Readout]
    uses_time: bool
    vocab_size: int


def padded_vocab(vocab_size: int) -> int:
    """Rows of the embedding and the head: V tokens and the mask, up to a multiple of 128."""
    return -(-(vocab_size + 1) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def make_network(
    config: ModelConfig, vocab_size: int, constrain: Constrain = lambda x, kind: x
) -> Network:
    """Builds the network of a config.

    Args:
      config: sizes and options.
      vocab_size: number of real tokens V; id V is the mask.
      constrain: the layout's `constrain(activation, kind)`; kind "hidden" is [B, L, D].

    Returns:
      The pure functions.
    """

    def build(key: Array) -> Transformer:
        return Transformer(config, padded_vocab(vocab_size), nnx.Rngs(params=key))

    graphdef, _ = nnx.split(nnx.eval_shape(build, jax.random.key(0)))

    def init(key: Array) -> Params:
        return nnx.to_pure_dict(nnx.state(build(key), nnx.Param))

    def apply(
        params: Params,
        tokens: Array,
        sigma: Array | None = None,
        dropout_keys: Array | None = None,
    ) -> Readout:
        hidden = nnx.merge(graphdef, params)(tokens, sigma, dropout_keys, constrain)
        head = params["head"]
        kernel = params["embed"]["embedding"].T if config.tied_head else head["kernel"]
        return Readout(hidden, kernel, head["bias"], vocab_size)

    return Network(init, apply, config.time == "adaln", vocab_size)
