"""The transformer: rotary positions, pre-LayerNorm blocks, GELU MLP, stacked and scanned layers.

With `time="none"` it is the network of RADD (Ou et al. 2024, arXiv:2406.03736); with `time="adaln"`
the DiT of SEDD (Lou et al. 2023, arXiv:2310.16834) and MDLM (Sahoo et al. 2024, arXiv:2406.07524),
whose layers are shifted, scaled and gated by an embedding of sigma (Peebles & Xie 2022); with
`time="constant"` the same blocks at sigma = 0, as MDLM and BD3-LM are published for OpenWebText.
With `positions="learned"` and `attention_bias` they are the blocks of GPT-2 (Radford et al. 2019).
With `kind="prefix"` a source text comes first, which sees only itself (a prefix language model).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ddm_jax.config import ModelConfig
from ddm_jax.models.attention import (
    attention,
    mask_keys,
    prepend_source,
    select_positions,
    select_queries,
)
from ddm_jax.models.call import Cache, Call
from ddm_jax.models.layers import (
    EMBED_INIT,
    INIT,
    Head,
    SigmaEmbedding,
    dropout,
    has_adaln,
    layer_norm,
    recomputed,
    rotary,
    stacked,
    through_layers,
    update_cache,
)
from ddm_jax.models.layout_hooks import SINGLE_DEVICE, LayoutHooks
from ddm_jax.models.linear import Embedding, Linear
from ddm_jax.models.source_memory import LengthHead, Memory


class Transformer(nnx.Module):
    """Token ids in, final hidden states out; models/readout.py reads the head."""

    def __init__(self, config: ModelConfig, padded_vocab: int, hooks: LayoutHooks, rngs: nnx.Rngs):
        self.config, self.hooks = config, hooks
        self.embed = Embedding(config, padded_vocab, hooks, rngs, EMBED_INIT)
        if config.positions == "learned":
            self.positions = Embedding(config, config.max_length, SINGLE_DEVICE, rngs, EMBED_INIT)
        if has_adaln(config):
            self.time = SigmaEmbedding(config, rngs)
            self.final_adaln = _modulation(config, 2, rngs)

        self.blocks = stacked(config, lambda rngs: Block(config, hooks, rngs), rngs)
        self.final_norm = layer_norm(config, rngs)
        self.head = Head(config, padded_vocab)
        if config.kind == "prefix":
            self.length = LengthHead(config, rngs)
            # distinguishes a source from a target, whose positions are the same
            self.segment = nnx.Param(EMBED_INIT(rngs.params(), (1, config.width)))

    def __call__(
        self, tokens: Array, sigma: Array | None, call: Call, segment: Array | None = None
    ) -> tuple[Array, Cache | None]:
        """Evaluates the network.

        Args:
          tokens: int32[B, L].
          sigma: float32[B]; only read where the blocks are modulated.
          call: of Network.apply.
          segment: [1, D], added to the embeddings of all tokens.

        Returns:
          Hidden states [B, L, D] in the compute dtype, [B, K, D] with call.read int32[B, K], and
          the cache if call.keep.
        """
        config = self.config
        cond = self._conditioning(sigma)
        x = self.embed(tokens)
        x = self.hooks.constrain(x if segment is None else x + segment.astype(x.dtype))
        positions = jnp.arange(tokens.shape[1]) if call.positions is None else call.positions
        if config.positions == "learned":
            x = self.hooks.constrain(x + self.positions(positions))
        attend = mask_keys(call.attend, call.seen)
        if call.memory is not None:
            keys = tokens.shape[1] if call.cache is None else call.cache[0].shape[2]
            attend = prepend_source(call.memory.valid, attend, keys)
        call = dataclasses.replace(call, attend=attend, positions=positions)

        def run(block: Block, x: Array, call: Call) -> tuple[Array, Cache]:
            return block(x, cond, call)

        cache = None
        if call.read is None:
            x, cache = through_layers(config, self.hooks, self.blocks, run, x, call)
        else:
            x = self._read(x, cond, call)
        x = self.final_norm(x)
        if cond is not None:
            shift, scale = _chunks(self.final_adaln(cond), 2)
            x = x * (1 + scale) + shift
        return x, cache

    def _conditioning(self, sigma: Array | None) -> Array | None:
        """[B, C] from sigma float[B]; None where the blocks are not modulated."""
        if not has_adaln(self.config):
            return None
        assert sigma is not None, "the network is conditioned on time"
        return self.time(sigma)

    def encode(self, source: Array, valid: Array, dropout_keys: Array | None) -> Memory:
        """The memory of source int32[B, S], at sigma = 0; arguments as in Network.encode.

        Its positions start at 0, as those of the target do: where one follows the order of the
        other, what belongs together is near.
        """
        sigma = jnp.zeros(len(source)) if has_adaln(self.config) else None
        call = Call(dropout_keys=dropout_keys, keep=True, seen=valid)
        hidden, cache = self(source, sigma, call, self.segment[...])
        assert cache is not None  # call.keep
        return Memory(*cache, valid, self.length(hidden, valid))

    def _read(self, x: Array, cond: Array | None, call: Call) -> Array:
        """All layers, the last one only for the tokens in call.read int32[B, K]: [B, K, D]."""
        graphdef, stack = nnx.split(self.blocks)
        all_tokens = dataclasses.replace(call, read=None)

        def layer(i: int | Array, x: Array, call: Call = all_tokens) -> Array:
            block, per_layer = jax.tree.map(lambda leaf: leaf[i], (stack, call.per_layer))
            return nnx.merge(graphdef, block)(x, cond, call.of_layer(per_layer, None))[0]

        last = self.config.depth - 1
        return layer(last, jax.lax.fori_loop(0, last, layer, x), call)


class Block(nnx.Module):
    """Attention and MLP, each on a normalised input, added to the residual stream."""

    def __init__(self, config: ModelConfig, hooks: LayoutHooks, rngs: nnx.Rngs):
        self.config, self.hooks = config, hooks
        width, heads = config.width, config.heads
        head_width, biased = width // heads, config.attention_bias
        self.norm1 = layer_norm(config, rngs)
        self.qkv = Linear(config, width, (3, heads, head_width), rngs, INIT, bias=biased)
        self.out = Linear(config, (heads, head_width), width, rngs, INIT, bias=biased)
        self.norm2 = layer_norm(config, rngs)
        self.mlp_in = Linear(config, width, config.mlp_ratio * width, rngs, INIT)
        self.mlp_out = Linear(config, config.mlp_ratio * width, width, rngs, INIT)
        if has_adaln(config):
            self.adaln = _modulation(config, 6, rngs)

    def __call__(self, x: Array, cond: Array | None, call: Call) -> tuple[Array, Cache]:
        """One layer.

        Args:
          x: [B, L, D].
          cond: conditioning vectors [B, C]; None where the blocks are not modulated.
          call: of this layer.

        Returns:
          [B, L, D], [B, K, D] with call.read int32[B, K], and the cache of this layer.
        """
        rate, keys = self.config.dropout, call.dropout_keys
        # shift, scale and gate, twice
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            (0, 0, 1, 0, 0, 1) if cond is None else _chunks(self.adaln(cond), 6)
        )
        qkv = recomputed(lambda x: self.qkv(self.norm1(x) * (1 + scale1) + shift1))(x)
        h, cache = self.attention(qkv, call)
        x = select_positions(x, call.read) + gate1 * dropout(h, keys, 0, rate)
        h = recomputed(lambda x: self.mlp_in(self.norm2(x) * (1 + scale2) + shift2))(x)
        h = recomputed(lambda h: self.mlp_out(nnx.gelu(h, approximate=True)))(h)
        return x + gate2 * dropout(h, keys, 1, rate), cache

    def attention(self, qkv: Array, call: Call) -> tuple[Array, Cache]:
        """[B, L, 3, H, D / H] and the call of this layer -> [B, L, D] and the cache.

        The keys are those of the source, if there is one, followed by those of the cache or else
        the tokens.
        """
        q, k, v = jnp.moveaxis(qkv, 2, 0)
        attend = call.attend
        if self.config.positions == "rotary":
            assert call.positions is not None
            q, k = rotary(q, call.positions), rotary(k, call.positions)
        cache = k, v = update_cache(call.cache, (k, v), call.positions)
        if call.memory is not None:
            k = jnp.concatenate((call.memory.k, k), axis=1)
            v = jnp.concatenate((call.memory.v, v), axis=1)
        if call.read is not None:
            q, attend = select_positions(q, call.read), select_queries(attend, call.read)
        mixed = attention(self.config.attention, q, k, v, attend, self.hooks)
        return self.out(mixed), cache


def _modulation(config: ModelConfig, parts: int, rngs: nnx.Rngs) -> Linear:
    """Shifts, scales and gates from cond; zero at the start, so that a block starts as the identity
    (adaLN-zero).
    """
    return Linear(config, config.cond_width, parts * config.width, rngs, nnx.initializers.zeros)


def _chunks(x: Array, parts: int) -> list[Array]:
    """[B, parts D] -> that many [B, 1, D]."""
    return jnp.split(x[:, None, :], parts, axis=-1)
