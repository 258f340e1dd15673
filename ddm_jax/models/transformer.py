"""The transformer: rotary positions, pre-LayerNorm blocks, GELU MLP, stacked and scanned layers.

With `time="none"` it is the network of RADD (Ou et al. 2024, arXiv:2406.03736); with `time="adaln"`
the DiT of SEDD (Lou et al. 2023, arXiv:2310.16834) and MDLM (Sahoo et al. 2024, arXiv:2406.07524),
whose layers are shifted, scaled and gated by an embedding of sigma (Peebles & Xie 2022); with
`time="constant"` the same blocks at sigma = 0, as MDLM and BD3-LM are published for OpenWebText.
With `positions="learned"` and `attention_bias` they are the blocks of GPT-2 (Radford et al. 2019).
With `kind="prefix"` a source text comes first, which sees itself alone (a prefix language model).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ddm_jax.config import ModelConfig
from ddm_jax.models.attention import Attend, attention, mask_keys, prepend_source
from ddm_jax.models.layers import (
    EMBED_INIT,
    INIT,
    Cache,
    Head,
    SigmaEmbedding,
    dropout,
    has_adaln,
    layer_norm,
    recomputed,
    rotary,
    select_positions,
    stacked,
    through_layers,
    update_cache,
)
from ddm_jax.models.layout_hooks import SINGLE_DEVICE, LayoutHooks
from ddm_jax.models.linear import Embedding, Linear
from ddm_jax.models.source_memory import LengthHead, Memory


class Transformer(nnx.Module):
    """Token ids in, final hidden states out; the head is read outside (models/network.py)."""

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
            # tells a source from a target, whose positions are the same
            self.segment = nnx.Param(EMBED_INIT(rngs.params(), (1, config.width)))

    def __call__(
        self,
        tokens: Array,
        sigma: Array | None,
        memory: Memory | None,
        seen: Array | None,
        attend: Attend,
        positions: Array | None,
        dropout_keys: Array | None,
        cache: Cache | None,
        keep: bool,
        read: Array | None,
        segment: Array | None = None,
    ) -> tuple[Array, Cache | None]:
        """Hidden states [B, L, D] in the compute dtype of tokens int32[B, L]; the cache, if kept.

        segment: added to the embeddings, [1, D]. The rest as in Network.apply.
        """
        config = self.config
        cond = self.time(sigma) if has_adaln(config) else None
        x = self.embed(tokens)
        x = self.hooks.constrain(x if segment is None else x + segment.astype(x.dtype))
        positions = jnp.arange(tokens.shape[1]) if positions is None else positions
        if config.positions == "learned":
            x = self.hooks.constrain(x + self.positions(positions))
        attend, source = mask_keys(attend, seen), None
        if memory is not None:
            number = tokens.shape[1] if cache is None else cache[0].shape[2]
            attend, source = prepend_source(memory.valid, attend, number), (memory.k, memory.v)

        def layer(x: Array, block: Block, keys: Array | None, given: Any) -> tuple[Array, Any]:
            x, cache = block(x, cond, attend, positions, keys, *given)
            return self.hooks.constrain(x), cache if keep else None

        if read is None:
            given = cache, source
            x, cache = through_layers(config, self.blocks, layer, x, dropout_keys, given)
        else:
            x, cache = self._read(x, cond, attend, positions, cache, source, read), None
        x = self.final_norm(x)
        if cond is not None:
            shift, scale = _chunks(self.final_adaln(cond), 2)
            x = x * (1 + scale) + shift
        return x, cache

    def encode(self, source: Array, valid: Array, dropout_keys: Array | None) -> Memory:
        """The memory of source int32[B, S], at sigma = 0; arguments as in Network.encode.

        Its positions start at 0, as those of the target do: where one follows the order of the
        other, what belongs together is near.
        """
        sigma = jnp.zeros(len(source)) if has_adaln(self.config) else None
        hidden, (k, v) = self(
            source,
            sigma,
            None,
            valid,
            None,
            None,
            dropout_keys,
            None,
            True,
            None,
            self.segment[...],
        )
        return Memory(k, v, valid, self.length(hidden, valid))

    def _read(
        self,
        x: Array,
        cond: Array | None,
        attend: Attend,
        positions: Array,
        cache: Cache | None,
        source: Cache | None,
        read: Array,
    ) -> Array:
        """All layers, the last one for the tokens in read int32[B, K] alone: [B, K, D]."""
        graphdef, stack = nnx.split(self.blocks)

        def layer(i: int | Array, x: Array, read: Array | None = None) -> Array:
            block, *given = jax.tree.map(lambda leaf: leaf[i], (stack, cache, source))
            return nnx.merge(graphdef, block)(x, cond, attend, positions, None, *given, read)[0]

        last = self.config.depth - 1
        return layer(last, jax.lax.fori_loop(0, last, layer, x), read)


class Block(nnx.Module):
    """Attention and MLP, each on a normalised input, added to the residual stream."""

    def __init__(self, config: ModelConfig, hooks: LayoutHooks, rngs: nnx.Rngs):
        self.config, self.hooks = config, hooks
        width, heads = config.width, config.heads
        each, biased = width // heads, config.attention_bias
        self.norm1 = layer_norm(config, rngs)
        self.qkv = Linear(config, width, (3, heads, each), rngs, INIT, bias=biased)
        self.out = Linear(config, (heads, each), width, rngs, INIT, bias=biased)
        self.norm2 = layer_norm(config, rngs)
        self.mlp_in = Linear(config, width, config.mlp_ratio * width, rngs, INIT)
        self.mlp_out = Linear(config, config.mlp_ratio * width, width, rngs, INIT)
        if has_adaln(config):
            self.adaln = _modulation(config, 6, rngs)

    def __call__(
        self,
        x: Array,
        cond: Array | None,
        attend: Attend,
        positions: Array,
        keys: Array | None,
        cache: Cache | None,
        source: Cache | None,
        read: Array | None = None,
    ) -> tuple[Array, Cache]:
        """x [B, L, D], cond [B, C] and dropout keys [B] (or None) -> [B, L, D] and a cache.

        Of the tokens in read int32[B, K] alone, if given: [B, K, D].
        """
        rate = self.config.dropout
        # shift, scale and gate, twice
        shift1, scale1, gate1, shift2, scale2, gate2 = (
            (0, 0, 1, 0, 0, 1) if cond is None else _chunks(self.adaln(cond), 6)
        )
        qkv = recomputed(lambda x: self.qkv(self.norm1(x) * (1 + scale1) + shift1))(x)
        h, cache = self.attention(qkv, attend, positions, cache, source, read)
        x = select_positions(x, read) + gate1 * dropout(h, keys, 0, rate)
        h = recomputed(lambda x: self.mlp_in(self.norm2(x) * (1 + scale2) + shift2))(x)
        h = recomputed(lambda h: self.mlp_out(nnx.gelu(h, approximate=True)))(h)
        return x + gate2 * dropout(h, keys, 1, rate), cache

    def attention(
        self,
        qkv: Array,
        attend: Attend,
        positions: Array,
        cache: Cache | None,
        source: Cache | None,
        read: Array | None,
    ) -> tuple[Array, Cache]:
        """[B, L, 3, H, D / H] -> [B, L, D] and a cache of keys and values, [B, M, H, D / H] each.

        attend: over those of the source, if there is one, and then the M. The rest as in
        Network.apply, cache and source those of this layer.
        """
        q, k, v = jnp.moveaxis(qkv, 2, 0)
        if self.config.positions == "rotary":
            q, k = rotary(q, positions), rotary(k, positions)
        cache = k, v = update_cache(cache, (k, v), positions)
        if source is not None:
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip(source, cache, strict=True))
        if read is not None:
            q, attend = select_positions(q, read), _rows(attend, read)
        mixed = attention(self.config.attention, q, k, v, attend, self.hooks)
        return self.out(mixed), cache


def _rows(attend: Attend, read: Array) -> Attend:
    """The pattern of the queries in read int32[B, K]."""
    if attend is None:
        return None
    return select_positions(attend, read) if attend.ndim == 3 else attend.at[read].get(mode="clip")


def _modulation(config: ModelConfig, parts: int, rngs: nnx.Rngs) -> Linear:
    """Starts at zero, so that each block starts as the identity (adaLN-zero)."""
    return Linear(config, config.cond_width, parts * config.width, rngs, nnx.initializers.zeros)


def _chunks(x: Array, parts: int) -> list[Array]:
    return jnp.split(x[:, None, :], parts, axis=-1)
