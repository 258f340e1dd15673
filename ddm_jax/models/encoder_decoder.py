"""RDM's network from a source to a target (Zheng et al. 2023, arXiv:2302.05737).

The encoder-decoder of Vaswani et al. 2017 (post-LayerNorm, ReLU) with these differences: positions
are learned, concatenated to the embeddings of the tokens and fused with them; the decoder sees all
of the target by default; and the time is added to the decoder's input (`time="input"`).
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax import Array

from ddm_jax.config import ModelConfig
from ddm_jax.models.attention import attention, mask_keys, select_positions
from ddm_jax.models.call import Cache, Call
from ddm_jax.models.layers import (
    Head,
    dropout,
    fold_in_keys,
    layer_norm,
    stacked,
    through_layers,
    update_cache,
)
from ddm_jax.models.layout_hooks import SINGLE_DEVICE, LayoutHooks
from ddm_jax.models.linear import Embedding, Linear
from ddm_jax.models.source_memory import LengthHead, Memory

INIT = nnx.initializers.normal(0.02)  # BERT's, as in the published runs


class EncoderDecoder(nnx.Module):
    """Reads a source into a memory, and with it a target into final hidden states."""

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
        x = self.encoder.embed(self.embed(source), None)
        x, _ = self.encoder(x, Call(seen=valid, dropout_keys=dropout_keys))
        k, v = nnx.vmap(Block.keys_and_values, in_axes=(0, None))(self.decoder.blocks, x)
        return Memory(k, v, valid, self.length(x, valid))

    def __call__(
        self, tokens: Array, sigma: Array | None, call: Call
    ) -> tuple[Array, Cache | None]:
        """Evaluates the decoder; all tokens are computed, whatever call.read.

        Args:
          tokens: int32[B, L].
          sigma: float32[B], the time; only read with `time="input"`.
          call: of Network.apply; its memory is required.

        Returns:
          Hidden states [B, L, D] in the compute dtype, those of call.read if given, and the cache
          if call.keep.
        """
        x = self.decoder.embed(self.embed(tokens), call.positions)
        if self.config.time == "input":
            assert sigma is not None, "the network is conditioned on time"
            x = x + self.time(sinusoids(sigma, self.config.width))[:, None]
        x, cache = self.decoder(x, call)
        return select_positions(x, call.read), cache


class Side(nnx.Module):
    """The encoder or the decoder: learned positions, their fusion with the tokens, layers."""

    def __init__(self, config: ModelConfig, crosses: bool, hooks: LayoutHooks, rngs: nnx.Rngs):
        self.config, self.hooks = config, hooks
        width = config.width
        self.positions = Embedding(config, config.max_length, SINGLE_DEVICE, rngs, INIT)
        self.fusion = Linear(config, 2 * width, width, rngs, INIT)
        self.blocks = stacked(config, lambda rngs: Block(config, crosses, hooks, rngs), rngs)

    def embed(self, tokens: Array, positions: Array | None) -> Array:
        """Embeddings of tokens [B, L, D] at positions int32[L], 0..L-1 if None -> [B, L, D]."""
        positions = jnp.arange(tokens.shape[1]) if positions is None else positions
        at = jnp.broadcast_to(self.positions(positions), tokens.shape)
        return self.fusion(jnp.concatenate([self.config.width**0.5 * tokens, at], axis=-1))

    def __call__(self, x: Array, call: Call) -> tuple[Array, Cache | None]:
        """Embedded tokens [B, L, D] through all layers -> [B, L, D], and the cache if call.keep."""
        config = self.config
        call = dataclasses.replace(call, attend=mask_keys(call.attend, call.seen))
        # the layers are numbered 0 .. depth - 1
        x = dropout(x, fold_in_keys(call.dropout_keys, config.depth), 0, config.dropout)
        x = self.hooks.constrain(x)
        return through_layers(config, self.hooks, self.blocks, Block.__call__, x, call)


class Block(nnx.Module):
    """Attention, attention to the source (the decoder's) and MLP, each added and normalised."""

    def __init__(self, config: ModelConfig, crosses: bool, hooks: LayoutHooks, rngs: nnx.Rngs):
        self.config, self.hooks = config, hooks
        width, heads = config.width, config.heads
        head_width = width // heads
        self.qkv = Linear(config, width, (3, heads, head_width), rngs, INIT)
        self.out = Linear(config, (heads, head_width), width, rngs, INIT)
        self.norm1 = layer_norm(config, rngs)
        if crosses:
            self.cross_q = Linear(config, width, (heads, head_width), rngs, INIT)
            self.cross_kv = Linear(config, width, (2, heads, head_width), rngs, INIT)
            self.cross_out = Linear(config, (heads, head_width), width, rngs, INIT)
            self.cross_norm = layer_norm(config, rngs)
        self.mlp_in = Linear(config, width, config.mlp_ratio * width, rngs, INIT)
        self.mlp_out = Linear(config, config.mlp_ratio * width, width, rngs, INIT)
        self.norm2 = layer_norm(config, rngs)

    def __call__(self, x: Array, call: Call) -> tuple[Array, Cache]:
        """x [B, L, D] and the call of this layer -> [B, L, D] and the cache of this layer."""
        name, rate, keys = self.config.attention, self.config.dropout, call.dropout_keys
        q, k, v = jnp.moveaxis(self.qkv(x), 2, 0)
        cache = k, v = update_cache(call.cache, (k, v), call.positions)
        mixed = attention(name, q, k, v, call.attend, self.hooks)
        x = self.norm1(x + dropout(self.out(mixed), keys, 0, rate))
        if call.memory is not None:
            k, v, valid = call.memory.k, call.memory.v, call.memory.valid
            mixed = attention(name, self.cross_q(x), k, v, valid[:, None], self.hooks)
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
