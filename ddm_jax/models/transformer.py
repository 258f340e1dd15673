"""The transformer: rotary positions, pre-LayerNorm blocks, GELU MLP, stacked and scanned layers.

With `time="none"` it is the network of RADD (Ou et al. 2024, arXiv:2406.03736); with `time="adaln"`
the DiT of SEDD (Lou et al. 2023, arXiv:2310.16834) and MDLM (Sahoo et al. 2024, arXiv:2406.07524),
whose layers are shifted, scaled and gated by an embedding of sigma (Peebles & Xie 2022); with
`time="constant"` the same blocks at sigma = 0, as MDLM and BD3-LM are published for OpenWebText.
With `positions="learned"` and `attention_bias` they are the blocks of GPT-2 (Radford et al. 2019).
With `kind="prefix"` a source text comes first, which sees itself alone (a prefix language model).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ddm_jax.config import ModelConfig
from ddm_jax.models.attention import Attend, among, attention, behind
from ddm_jax.models.layout_hooks import ALONE, Spread
from ddm_jax.models.linear import MATMUL, Embedding, Linear
from ddm_jax.models.source_memory import LengthHead, Memory

REMAT_POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(MATMUL),
    "full": jax.checkpoint_policies.nothing_saveable,
}
# The backward pass keeps the argument alone. What a matmul reads, normalised and modulated or GELU,
# costs less to compute again from it than to write and read; the matmul itself is not done again.
again = functools.partial(jax.checkpoint, prevent_cse=False)

SIGMA_FREQUENCIES = 128  # cosines and as many sines; SEDD's frequency_embedding_size is 256

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what a PyTorch Linear starts from, as in the published code.
INIT = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
EMBED_INIT = nnx.initializers.variance_scaling(1 / 3, "fan_out", "uniform")

Cache = tuple[Array, Array]  # keys and values, [layers, B, M, H, D / H] each


class Transformer(nnx.Module):
    """Token ids in, final hidden states out; the head is read outside (models/network.py)."""

    def __init__(self, config: ModelConfig, padded_vocab: int, spread: Spread, rngs: nnx.Rngs):
        self.config, self.spread = config, spread
        self.embed = Embedding(config, padded_vocab, spread, rngs, EMBED_INIT)
        if config.positions == "learned":
            self.positions = Embedding(config, config.max_length, ALONE, rngs, EMBED_INIT)
        if has_adaln(config):
            self.time = SigmaEmbedding(config, rngs)
            self.final_adaln = _modulation(config, 2, rngs)

        self.blocks = stacked(config, lambda rngs: Block(config, spread, rngs), rngs)
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
        x = self.spread.constrain(x if segment is None else x + segment.astype(x.dtype))
        positions = jnp.arange(tokens.shape[1]) if positions is None else positions
        if config.positions == "learned":
            x = self.spread.constrain(x + self.positions(positions))
        attend, source = among(attend, seen), None
        if memory is not None:
            number = tokens.shape[1] if cache is None else cache[0].shape[2]
            attend, source = behind(memory.valid, attend, number), (memory.k, memory.v)

        def layer(x: Array, block: Block, keys: Array | None, given: Any) -> tuple[Array, Any]:
            x, cache = block(x, cond, attend, positions, keys, *given)
            return self.spread.constrain(x), cache if keep else None

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

    def __init__(self, config: ModelConfig, spread: Spread, rngs: nnx.Rngs):
        self.config, self.spread = config, spread
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
        qkv = again(lambda x: self.qkv(self.norm1(x) * (1 + scale1) + shift1))(x)
        h, cache = self.attention(qkv, attend, positions, cache, source, read)
        x = taken(x, read) + gate1 * dropout(h, keys, 0, rate)
        h = again(lambda x: self.mlp_in(self.norm2(x) * (1 + scale2) + shift2))(x)
        h = again(lambda h: self.mlp_out(nnx.gelu(h, approximate=True)))(h)
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
        cache = k, v = written(cache, (k, v), positions)
        if source is not None:
            k, v = (jnp.concatenate(pair, axis=1) for pair in zip(source, cache, strict=True))
        if read is not None:
            q, attend = taken(q, read), _rows(attend, read)
        mixed = attention(self.config.attention, q, k, v, attend, self.spread)
        return self.out(mixed), cache


class SigmaEmbedding(nnx.Module):
    """sigma float[B] -> conditioning vector [B, C]: sines and cosines, then a two-layer MLP."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        width = config.cond_width
        self.mlp_in = Linear(config, 2 * SIGMA_FREQUENCIES, width, rngs, INIT)
        self.mlp_out = Linear(config, width, width, rngs, INIT)

    def __call__(self, sigma: Array) -> Array:
        """silu(MLP([cos(sigma f), sin(sigma f)])) with f from 1 down to 1/10,000."""
        f = jnp.exp(-jnp.log(10_000.0) * jnp.arange(SIGMA_FREQUENCIES) / SIGMA_FREQUENCIES)
        angle = sigma[:, None] * f.astype(sigma.dtype)
        waves = jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
        return nnx.silu(self.mlp_out(nnx.silu(self.mlp_in(waves))))


class Head(nnx.Module):
    """Parameters of the read-out; a zero start gives every token the same probability."""

    def __init__(self, config: ModelConfig, padded_vocab: int):
        if not config.tied_head:
            self.kernel = nnx.Param(jnp.zeros((config.width, padded_vocab)))
        self.bias = nnx.Param(jnp.zeros((padded_vocab,)))


def has_adaln(config: ModelConfig) -> bool:
    """Whether the blocks are modulated, by sigma or by a constant."""
    return config.time in ("adaln", "constant")


def stacked(
    config: ModelConfig, make: Callable[[nnx.Rngs], nnx.Module], rngs: nnx.Rngs
) -> nnx.Module:
    """The layers as one module whose parameters have a first axis of config.depth."""

    @nnx.split_rngs(splits=config.depth)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def stack(rngs: nnx.Rngs) -> nnx.Module:
        return make(rngs)

    return stack(rngs)


def through_layers(
    config: ModelConfig,
    blocks: nnx.Module,
    run: Callable[[Array, Any, Array | None, Any], tuple[Array, Any]],
    x: Array,
    dropout_keys: Array | None,
    given: Any,
) -> tuple[Array, Any]:
    """x through run(x, block, dropout keys, given) -> (x, kept) of each layer, scanned.

    `given` and what is kept have the layers on their first axis; dropout_keys: key[B] or None.
    """

    def layer(x: Array, block: Any, index: Array, given: Any) -> tuple[Array, Any]:
        return run(x, block, folded(dropout_keys, index), given)

    if config.remat != "none":
        layer = nnx.remat(layer, policy=REMAT_POLICIES[config.remat])
    scan = nnx.scan(layer, in_axes=(nnx.Carry, 0, 0, 0), out_axes=(nnx.Carry, 0))
    return scan(x, blocks, jnp.arange(config.depth), given)


def folded(keys: Array | None, number: int | Array) -> Array | None:
    """Keys of the same examples for another use; None stays None."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def dropout(x: Array, keys: Array | None, site: int, rate: float) -> Array:
    """Drops entries of x [B, L, D]; each example has its own key, so no layout changes it."""
    if keys is None or rate == 0:
        return x
    # 16 random bits an entry are enough to hold the rate to 1e-5 and halve the cost.
    threshold = round(rate * 2**16)
    bits = jax.vmap(lambda key: jax.random.bits(key, x.shape[1:], jnp.uint16))(folded(keys, site))
    keep = 1 - threshold / 2**16
    return jnp.where(bits >= threshold, x / keep, 0).astype(x.dtype)


def written(cache: Cache | None, new: Cache, positions: Array) -> Cache:
    """A layer's cache with the new keys and values from positions[0] on; these where it is None."""
    if cache is None:
        return new
    return tuple(
        jax.lax.dynamic_update_slice_in_dim(old, part, positions[0], axis=1)
        for old, part in zip(cache, new, strict=True)
    )


def taken(x: Array, read: Array | None) -> Array:
    """The tokens in read int32[B, K] of x [B, L, ...]; all where it is None."""
    if read is None:
        return x
    return jax.vmap(lambda x, at: x.at[at].get(mode="clip"))(x, read)


def rotary(x: Array, positions: Array, base: float = 10_000.0) -> Array:
    """Rotates [B, L, H, D] by positions int32[L] (Su et al. 2021, arXiv:2104.09864), halves paired.

    The angle of pair i at position l is l base^(-2i/D); computed in float32 or wider.
    """
    dim = x.shape[3]
    wide = jnp.promote_types(x.dtype, jnp.float32)
    frequency = base ** (-jnp.arange(0, dim, 2, dtype=wide) / dim)
    angle = positions.astype(wide)[:, None, None] * frequency
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    a, b = jnp.split(x.astype(wide), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def layer_norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """With the epsilon of all published networks, and the bias that is asked for."""
    return nnx.LayerNorm(
        config.width,
        epsilon=1e-5,
        use_bias=config.norm_bias,
        use_fast_variance=False,
        dtype=jnp.dtype(config.compute_dtype),
        promote_dtype=_scaled_in_float32,
        rngs=rngs,
    )


def _scaled_in_float32(arrays: tuple, dtype: Any) -> tuple:
    """Casts the input alone: the gradients of scale and bias are then summed in float32."""
    x, *parameters = arrays
    return x.astype(dtype), *parameters


def _rows(attend: Attend, read: Array) -> Attend:
    """The pattern of the queries in read int32[B, K]."""
    if attend is None:
        return None
    return taken(attend, read) if attend.ndim == 3 else attend.at[read].get(mode="clip")


def _modulation(config: ModelConfig, parts: int, rngs: nnx.Rngs) -> Linear:
    """Starts at zero, so that each block starts as the identity (adaLN-zero)."""
    return Linear(config, config.cond_width, parts * config.width, rngs, nnx.initializers.zeros)


def _chunks(x: Array, parts: int) -> list[Array]:
    return jnp.split(x[:, None, :], parts, axis=-1)
