"""Layers that both transformers share: rotary positions, norms, dropout, time embedding, head."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ddm_jax.config import ModelConfig
from ddm_jax.models.linear import MATMUL, Linear

REMAT_POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(MATMUL),
    "full": jax.checkpoint_policies.nothing_saveable,
}


# The backward pass keeps the argument alone. What a matmul reads, normalised and modulated or GELU,
# costs less to compute again from it than to write and read; the matmul itself is not done again.
recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


SIGMA_FREQUENCIES = 128  # cosines and as many sines; SEDD's frequency_embedding_size is 256


# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what a PyTorch Linear starts from, as in the published code.
INIT = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


EMBED_INIT = nnx.initializers.variance_scaling(1 / 3, "fan_out", "uniform")


Cache = tuple[Array, Array]  # keys and values, [layers, B, M, H, D / H] each


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
        return run(x, block, fold_in_keys(dropout_keys, index), given)

    if config.remat != "none":
        layer = nnx.remat(layer, policy=REMAT_POLICIES[config.remat])
    scan = nnx.scan(layer, in_axes=(nnx.Carry, 0, 0, 0), out_axes=(nnx.Carry, 0))
    return scan(x, blocks, jnp.arange(config.depth), given)


def fold_in_keys(keys: Array | None, number: int | Array) -> Array | None:
    """Keys of the same examples for another use; None stays None."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def dropout(x: Array, keys: Array | None, site: int, rate: float) -> Array:
    """Drops entries of x [B, L, D]; each example has its own key, so no layout changes it."""
    if keys is None or rate == 0:
        return x
    # 16 random bits an entry are enough to hold the rate to 1e-5 and halve the cost.
    threshold = round(rate * 2**16)
    bits = jax.vmap(lambda key: jax.random.bits(key, x.shape[1:], jnp.uint16))(
        fold_in_keys(keys, site)
    )
    keep = 1 - threshold / 2**16
    return jnp.where(bits >= threshold, x / keep, 0).astype(x.dtype)


def update_cache(cache: Cache | None, new: Cache, positions: Array) -> Cache:
    """A layer's cache with the new keys and values from positions[0] on; these where it is None."""
    if cache is None:
        return new
    return tuple(
        jax.lax.dynamic_update_slice_in_dim(old, part, positions[0], axis=1)
        for old, part in zip(cache, new, strict=True)
    )


def select_positions(x: Array, read: Array | None) -> Array:
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
