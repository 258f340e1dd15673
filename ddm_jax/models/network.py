"""The functional boundary: a network is pure functions over a plain nested dict of arrays.

Nothing outside models/ sees Flax. The head is read last and only as far as asked: losses take the
logit of the target and the log normaliser, samplers the full logits. A network from a source to a
target reads the source once, into a memory that every evaluation on the target is given.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ddm_jax.config import ModelConfig
from ddm_jax.models.attention import Attend
from ddm_jax.models.encoder_decoder import EncoderDecoder
from ddm_jax.models.layers import Cache, fold_in_keys
from ddm_jax.models.layout_hooks import SINGLE_DEVICE, LayoutHooks
from ddm_jax.models.readout import Readout
from ddm_jax.models.source_memory import Memory
from ddm_jax.models.transformer import Transformer

Params = dict[str, Any]
Apply = Callable[..., Readout]  # Network.apply, perhaps with some of its arguments bound
VOCAB_MULTIPLE = 128
KINDS = {"lm": Transformer, "prefix": Transformer, "encoder_decoder": EncoderDecoder}


@dataclass(frozen=True)
class Network:
    """`init(key) -> params` and `apply(params, tokens, sigma, ...) -> Readout`.

    `encode(params, source, valid, ...) -> Memory` reads a source for `apply`; None where model.kind
    is "lm". params: nested dict of float32 arrays, layers stacked on their first axis.
    dropout_keys, of both: key[B], one for each example, the same ones; None to switch dropout off.

    apply: tokens: int32[B, L]. sigma: float32[B], required when the network is conditioned on time
    and ignored when it is not. memory: that of the source, which every position sees; required when
    model.kind is "encoder_decoder", and text alone without it when it is "prefix". seen: bool[B,
    L], the tokens that are seen, False for padding; None for all. attend: None (every position sees
    all), "causal", or bool[L, L] whose [q, k] says whether q sees k. positions: int32[L] for the
    rotary angles or the learned positions, 0..L-1 by default.
    keep: whether Readout.cache holds the keys and values of these tokens. cache: such a cache of M
    positions, into which those of the given n neighbours (`positions`, required) are written before
    the n look at all of it as attend, bool[n, M], and seen, bool[B, M], let them; it is kept. read:
    int32[B, K], the only tokens whose Readout is wanted, which saves most of the last layer except
    with "encoder_decoder" (not with "causal", and nothing is kept); None for all. An index beyond
    the last token stands for it.

    With config.shift the Readout of token i is that of the slot of token i - 1: apply puts the row
    of the mask before the tokens, and takes neither memory nor seen, positions, keep or cache;
    attend is over the L + 1 slots.

    encode: source: int32[B, S]. valid: bool[B, S], its real tokens, one or more from the left; what
    is beyond them, and how much, changes nothing.
    """

    init: Callable[[Array], Params]
    apply: Callable[..., Readout]
    vocab_size: int
    encode: Callable[..., Memory] | None = None


def padded_vocab(vocab_size: int) -> int:
    """Rows of the embedding and the head: V tokens and the mask, up to a multiple of 128."""
    return -(-(vocab_size + 1) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def make_network(
    config: ModelConfig, vocab_size: int, hooks: LayoutHooks = SINGLE_DEVICE
) -> Network:
    """Builds the network of a config.

    Args:
      config: sizes and options.
      vocab_size: number of real tokens V; id V is the mask.
      spread: what the layout asks for.

    Returns:
      The pure functions.
    """

    def build(key: Array) -> nnx.Module:
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
        model = nnx.merge(graphdef, params)
        keep = keep or cache is not None
        hidden, cache = model(
            tokens,
            sigma,
            memory,
            seen,
            attend,
            positions,
            dropout_keys,
            cache,
            keep,
            read,
        )
        head = params["head"]
        kernel = params["embed"]["embedding"].T if config.tied_head else head["kernel"]
        dtype = config.gradient_dtype
        return Readout(hidden, kernel, head["bias"], vocab_size, cache, hooks, dtype)

    def encode(
        params: Params, source: Array, valid: Array, *, dropout_keys: Array | None = None
    ) -> Memory:
        # a stream of its own: the target's folds in smaller numbers
        keys = fold_in_keys(dropout_keys, config.depth + 1)
        return nnx.merge(graphdef, params).encode(source, valid, keys)

    apply = read_from_the_left(apply, vocab_size) if config.shift else apply
    return Network(init, apply, vocab_size, None if config.kind == "lm" else encode)


def read_from_the_left(apply: Callable[..., Readout], mask_id: int) -> Callable[..., Readout]:
    """apply of a network whose head was trained to say the next token, as Network has it.

    So an autoregressive network begins to denoise (Gong et al. 2024, arXiv:2410.17891; Ye et al.
    2025, arXiv:2508.15487): its slots and positions stay those of objectives/ar.py, the start and
    then the tokens, and each may see all of them.
    """

    def of_slots(
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
        given = {"attend": attend, "dropout_keys": dropout_keys}
        if read is None:
            return apply(params, slots, sigma, **given).span(0, length)
        return apply(params, slots, sigma, **given, read=jnp.minimum(read, length - 1))

    return of_slots


def with_parameters(network: Network, name: str, init: Callable[[Array], Params]) -> Network:
    """The network with params[name] = init(key) beside its own: what an objective learns itself."""

    def init_all(key: Array) -> Params:
        return network.init(key) | {name: init(jax.random.fold_in(key, 1))}

    def own(function: Callable) -> Callable:
        def call(params: Params, *args: Any, **kwargs: Any) -> Any:
            return function({k: v for k, v in params.items() if k != name}, *args, **kwargs)

        return call

    encode = network.encode and own(network.encode)
    return dataclasses.replace(network, init=init_all, apply=own(network.apply), encode=encode)
