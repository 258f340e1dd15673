"""The functional boundary of models/: a network is pure functions over a nested dict of arrays.

Nothing outside models/ sees Flax. `apply` returns a `Readout`: the final hidden states with the
head, which is read only as far as needed. Losses take the logit of the target and the log
normaliser, samplers the full logits. A network from a source to a target reads the source once,
into a memory that is passed to every evaluation on the target.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ddm_jax.config import ModelConfig
from ddm_jax.models.attention import Attend
from ddm_jax.models.call import Cache, Call
from ddm_jax.models.encoder_decoder import EncoderDecoder
from ddm_jax.models.layers import fold_in_keys
from ddm_jax.models.layout_hooks import SINGLE_DEVICE, LayoutHooks
from ddm_jax.models.readout import Readout
from ddm_jax.models.source_memory import Memory
from ddm_jax.models.transformer import Transformer

Params = dict[str, Any]  # nested dict of float32 arrays; layers are stacked on the first axis
VOCAB_MULTIPLE = 128
KINDS: dict[str, type[Transformer] | type[EncoderDecoder]] = {
    "lm": Transformer,
    "prefix": Transformer,
    "encoder_decoder": EncoderDecoder,
}
T = TypeVar("T")


class Apply(Protocol):
    """The type of `Network.apply`: one evaluation of the network."""

    def __call__(
        self,
        params: Params,
        tokens: Array,
        sigma: Array | None = None,
        *,
        memory: Memory | None = None,
        seen: Array | None = None,
        attend: Attend = None,
        positions: Array | None = None,
        dropout_keys: Array | None = None,
        cache: Cache | None = None,
        keep: bool = False,
        read: Array | None = None,
    ) -> Readout:
        """Evaluates the network on tokens.

        Args:
          params: parameters of the network.
          tokens: int32[B, L].
          sigma: float32[B], required when the network is conditioned on time and ignored when it is
            not.
          memory: that of the source, which every position sees. Required when model.kind is
            "encoder_decoder"; with "prefix", text without a source has none.
          seen: bool[B, L], the tokens that are seen, False for padding; None for all.
          attend: None (every position sees all), "causal", or bool[L, L] whose [q, k] says whether
            query q sees key k.
          positions: int32[L] for the rotary angles or the learned positions, 0..L-1 by default.
          dropout_keys: key[B], one for each example; None to switch dropout off. `encode` takes the
            same keys.
          cache: keys and values of M positions, as an earlier call returned them in
            `Readout.cache`. The tokens are then n consecutive ones, at `positions` (required).
            Their keys and values are written into the cache before they look at all of it, as
            attend, bool[n, M], and seen, bool[B, M], allow. The updated cache is returned.
          keep: whether `Readout.cache` holds the keys and values of these tokens.
          read: int32[B, K], the only tokens whose Readout is needed, which saves most of the last
            layer except with "encoder_decoder"; None for all. It goes neither with "causal" nor
            with a cache. An index beyond the last token stands for the last one.

        Returns:
          The Readout of the tokens, or of those in `read`.
        """
        ...


class Encode(Protocol):
    """The type of `Network.encode`: reads a source."""

    def __call__(
        self, params: Params, source: Array, valid: Array, *, dropout_keys: Array | None = None
    ) -> Memory:
        """Reads a source for `apply`.

        Args:
          params: parameters of the network.
          source: int32[B, S].
          valid: bool[B, S], its real tokens, one or more from the left. The tokens after them, and
            their number, change nothing.
          dropout_keys: as for `apply`.

        Returns:
          The memory to pass to `apply`.
        """
        ...


@dataclass(frozen=True)
class Network:
    """A network as pure functions.

    With model.shift the Readout of token i is that of slot i - 1: `apply` puts the row of the mask
    before the tokens, and takes neither memory nor seen, positions, keep or cache; attend is over
    the L + 1 slots.

    Attributes:
      init: init(key) -> params.
      apply: apply(params, tokens, sigma, ...) -> Readout.
      vocab_size: number of real tokens V; id V is the mask.
      encode: encode(params, source, valid, ...) -> Memory, the source for `apply`; None where
        model.kind is "lm".
    """

    init: Callable[[Array], Params]
    apply: Apply
    vocab_size: int
    encode: Encode | None = None


def make_network(
    config: ModelConfig, vocab_size: int, hooks: LayoutHooks = SINGLE_DEVICE
) -> Network:
    """Builds the network of a config.

    Args:
      config: sizes and options.
      vocab_size: number of real tokens V; id V is the mask.
      hooks: the functions that depend on the layout.

    Returns:
      The pure functions.
    """

    def build(key: Array) -> Transformer | EncoderDecoder:
        return KINDS[config.kind](config, padded_vocab(vocab_size), hooks, nnx.Rngs(params=key))

    graphdef, _ = nnx.split(nnx.eval_shape(build, jax.random.key(0)))

    def init(key: Array) -> Params:
        return nnx.to_pure_dict(nnx.state(build(key), nnx.Param))

    def apply(
        params: Params,
        tokens: Array,
        sigma: Array | None = None,
        *,
        memory: Memory | None = None,
        seen: Array | None = None,
        attend: Attend = None,
        positions: Array | None = None,
        dropout_keys: Array | None = None,
        cache: Cache | None = None,
        keep: bool = False,
        read: Array | None = None,
    ) -> Readout:
        if config.time == "constant":
            sigma = jnp.zeros(tokens.shape[0])
        call = Call(
            attend=attend,
            positions=positions,
            dropout_keys=dropout_keys,
            cache=cache,
            keep=keep or cache is not None,
            read=read,
            memory=memory,
            seen=seen,
        )
        hidden, cache = nnx.merge(graphdef, params)(tokens, sigma, call)
        head = params["head"]
        kernel = params["embed"]["embedding"].T if config.tied_head else head["kernel"]
        dtype = config.gradient_dtype
        return Readout(hidden, kernel, head["bias"], vocab_size, cache, hooks, dtype)

    def encode(
        params: Params, source: Array, valid: Array, *, dropout_keys: Array | None = None
    ) -> Memory:
        # a separate stream: the target's folds in smaller numbers
        keys = fold_in_keys(dropout_keys, config.depth + 1)
        return nnx.merge(graphdef, params).encode(source, valid, keys)

    return Network(
        init,
        read_from_the_left(apply, vocab_size) if config.shift else apply,
        vocab_size,
        None if config.kind == "lm" else encode,
    )


def padded_vocab(vocab_size: int) -> int:
    """Rows of the embedding and the head: V tokens and the mask, up to a multiple of 128."""
    return -(-(vocab_size + 1) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def read_from_the_left(apply: Apply, mask_id: int) -> Apply:
    """The `apply` of a network whose head was trained to predict the next token (config.shift).

    So an autoregressive network begins to denoise (Gong et al. 2024, arXiv:2410.17891; Ye et al.
    2025, arXiv:2508.15487): its slots and positions stay those of objectives/ar.py, the start and
    then the tokens, and each may see all of them.
    """

    def apply_to_slots(
        params: Params,
        tokens: Array,
        sigma: Array | None = None,
        *,
        attend: Attend = None,
        dropout_keys: Array | None = None,
        read: Array | None = None,
    ) -> Readout:
        length = tokens.shape[1]
        slots = jnp.pad(tokens, ((0, 0), (1, 0)), constant_values=mask_id)
        if read is None:
            every = apply(params, slots, sigma, attend=attend, dropout_keys=dropout_keys)
            return every.span(0, length)
        read = jnp.minimum(read, length - 1)
        return apply(params, slots, sigma, attend=attend, dropout_keys=dropout_keys, read=read)

    return cast(Apply, apply_to_slots)  # settle() refuses what would need the other arguments


def with_parameters(network: Network, name: str, init: Callable[[Array], Params]) -> Network:
    """The network with an objective's own parameters, params[name] = init(key), next to its own."""

    def init_all(key: Array) -> Params:
        return network.init(key) | {name: init(jax.random.fold_in(key, 1))}

    def without_name(function: Callable[..., T]) -> Callable[..., T]:
        def call(params: Params, *args: Any, **kwargs: Any) -> T:
            return function({k: v for k, v in params.items() if k != name}, *args, **kwargs)

        return call

    return dataclasses.replace(
        network,
        init=init_all,
        apply=without_name(network.apply),
        encode=None if network.encode is None else without_name(network.encode),
    )
