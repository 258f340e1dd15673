"""RDM's network from a source to a target (Zheng et al. 2023, arXiv:2302.05737).

The encoder-decoder of Vaswani et al. 2017 (post-LayerNorm, ReLU), but for learned positions, which
are concatenated to the embeddings of the tokens and fused with them, a decoder that sees all of the
target unless it is told otherwise, and the time added to the decoder's input (`time="input"`).
"""

import jax.numpy as jnp
from flax import nnx
from jax import Array

from ddm_jax.config import ModelConfig
from ddm_jax.models.attention import Attend, attention, mask_keys
from ddm_jax.models.layers import (
    Cache,
    Head,
    dropout,
    fold_in_keys,
    layer_norm,
    select_positions,
    stacked,
    through_layers,
    update_cache,
)
from ddm_jax.models.layout_hooks import SINGLE_DEVICE, LayoutHooks
from ddm_jax.models.linear import Embedding, Linear
from ddm_jax.models.source_memory import LengthHead, Memory

INIT = nnx.initializers.normal(0.02)  # BERT's, as in the published runs


class EncoderDecoder(nnx.Module):
    """A source into a memory, and with that a target into final hidden states."""

    def __init__(self, config: ModelConfig, padded_vocab: int, hooks: LayoutHooks, rngs: nnx.Rngs):
        self.config = config
        self.embed = Embedding(config, padded_vocab, hooks, rngs, INIT)
        self.encoder = Side(config, False, hooks, rngs)
        self.decoder = Side(config, True, hooks, rngs)
        if config.time == "input":
            self.time = Linear(config, config.width, config.width, rngs, INIT)
        self.length = LengthHead(config, rngs)
        self.head = Head(config, padded_vocab)

    def encode(self, source: Array, valid: Array, dropout_keys: Array | None) -> Memory:
        """The memory of source int32[B, S]; arguments as in Network.encode."""
        x = self.encoder.fused(self.embed(source), None)
        x, _ = self.encoder(x, None, valid, None, None, dropout_keys, None, False)
        k, v = nnx.vmap(Block.keys_and_values, in_axes=(0, None))(self.decoder.blocks, x)
        return Memory(k, v, valid, self.length(x, valid))

    def __call__(
        self,
        tokens: Array,
        sigma: Array | None,
        memory: Memory,
        seen: Array | None,
        attend: Attend,
        positions: Array | None,
        dropout_keys: Array | None,
        cache: Cache | None,
        keep: bool,
        read: Array | None,
    ) -> tuple[Array, Cache | None]:
        """Hidden states [B, L, D] in the compute dtype of tokens int32[B, L]; the cache, if kept.

        Arguments as in Network.apply; of the tokens in `read` alone, but all are computed.
        """
        x = self.decoder.fused(self.embed(tokens), positions)
        if self.config.time == "input":
            x = x + self.time(sinusoids(sigma, self.config.width))[:, None]
        x, cache = self.decoder(x, memory, seen, attend, positions, dropout_keys, cache, keep)
        return select_positions(x, read), cache


class Side(nnx.Module):
    """The encoder or the decoder: learned positions, what fuses them with the tokens, layers."""

    def __init__(self, config: ModelConfig, crosses: bool, hooks: LayoutHooks, rngs: nnx.Rngs):
        self.config, self.hooks = config, hooks
        width = config.width
        self.positions = Embedding(config, config.max_length, SINGLE_DEVICE, rngs, INIT)
        self.fusion = Linear(config, 2 * width, width, rngs, INIT)
        self.blocks = stacked(config, lambda rngs: Block(config, crosses, hooks, rngs), rngs)

    def fused(self, tokens: Array, positions: Array | None) -> Array:
        """Embeddings of tokens [B, L, D] at positions int32[L], 0..L-1 if None -> [B, L, D]."""
        positions = jnp.arange(tokens.shape[1]) if positions is None else positions
        at = jnp.broadcast_to(self.positions(positions), tokens.shape)
        return self.fusion(jnp.concatenate([self.config.width**0.5 * tokens, at], axis=-1))

    def __call__(
        self,
        x: Array,
        memory: Memory | None,
        seen: Array | None,
        attend: Attend,
        positions: Array | None,
        dropout_keys: Array | None,
        cache: Cache | None,
        keep: bool,
    ) -> tuple[Array, Cache | None]:
        """x [B, L, D] through all layers, and the cache, if kept; arguments as in Network.apply."""
        config = self.config
        attend = mask_keys(attend, seen)
        from_source = None if memory is None else memory.valid[:, None]

        def layer(
            x: Array,
            block: Block,
            keys: Array | None,
            given: tuple[Cache | None, Cache | None],
        ) -> tuple[Array, Cache | None]:
            x, cache = block(x, attend, from_source, positions, keys, *given)
            return self.hooks.constrain(x), cache if keep else None

        # the layers are numbered 0 .. depth - 1
        x = dropout(x, fold_in_keys(dropout_keys, config.depth), 0, config.dropout)
        given = cache, None if memory is None else (memory.k, memory.v)
        return through_layers(
            config, self.blocks, layer, self.hooks.constrain(x), dropout_keys, given
        )


class Block(nnx.Module):
    """Attention, attention to the source (the decoder's) and MLP, each added and normalised."""

    def __init__(self, config: ModelConfig, crosses: bool, hooks: LayoutHooks, rngs: nnx.Rngs):
        self.config, self.hooks = config, hooks
        width, heads = config.width, config.heads
        each = width // heads
        self.qkv = Linear(config, width, (3, heads, each), rngs, INIT)
        self.out = Linear(config, (heads, each), width, rngs, INIT)
        self.norm1 = layer_norm(config, rngs)
        if crosses:
            self.cross_q = Linear(config, width, (heads, each), rngs, INIT)
            self.cross_kv = Linear(config, width, (2, heads, each), rngs, INIT)
            self.cross_out = Linear(config, (heads, each), width, rngs, INIT)
            self.cross_norm = layer_norm(config, rngs)
        self.mlp_in = Linear(config, width, config.mlp_ratio * width, rngs, INIT)
        self.mlp_out = Linear(config, config.mlp_ratio * width, width, rngs, INIT)
        self.norm2 = layer_norm(config, rngs)

    def __call__(
        self,
        x: Array,
        attend: Attend,
        from_source: Attend,
        positions: Array | None,
        keys: Array | None,
        cache: Cache | None,
        source: Cache | None,
    ) -> tuple[Array, Cache]:
        """x [B, L, D] and dropout keys [B] (or None) -> [B, L, D] and a cache of this layer.

        source: the keys and values of the source for it, seen as from_source lets them.
        """
        name, rate = self.config.attention, self.config.dropout
        q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)
        cache = update_cache(cache, (k, v), positions)
        mixed = attention(name, q, *cache, attend, self.hooks)
        x = self.norm1(x + dropout(self.out(mixed), keys, 0, rate))
        if source is not None:
            mixed = attention(name, self.cross_q(x), *source, from_source, self.hooks)
            x = self.cross_norm(x + dropout(self.cross_out(mixed), keys, 1, rate))
        h = self.mlp_out(nnx.relu(self.mlp_in(x)))
        return self.norm2(x + dropout(h, keys, 2, rate)), cache

    def keys_and_values(self, encoded: Array) -> Cache:
        """Of the source, for this layer: [B, S, D] -> [B, S, H, D / H] each."""
        k, v = jnp.moveaxis(self.cross_kv(encoded), 2, 0)
        return k, v


def sinusoids(t: Array, width: int) -> Array:
    """[sin(t f), cos(t f)] with width / 2 frequencies f from 1 down to 1/10,000: [B] -> [B, D]."""
    half = width // 2
    f = jnp.exp(-jnp.log(10_000.0) * jnp.arange(half) / max(half - 1, 1))
    angle = t[:, None] * f
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)
