"""Layers that both transformers share: the stack of blocks, dropout, norms, positions, head.

Blocks are stacked and scanned, so that the program does not grow with the depth.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from ddm_jax.config import ModelConfig
from ddm_jax.models.call import Cache, Call
from ddm_jax.models.layout_hooks import LayoutHooks
from ddm_jax.models.linear import MATMUL, Linear

B = TypeVar("B", bound=nnx.Module)
T = TypeVar("T", bound=tuple[Array, ...])

REMAT_POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.save_only_these_names(MATMUL),
    "full": jax.checkpoint_policies.nothing_saveable,
}

# U(-1/sqrt(fan_in), 1/sqrt(fan_in)): what a PyTorch Linear starts from, as in the published code.
INIT = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
EMBED_INIT = nnx.initializers.variance_scaling(1 / 3, "fan_out", "uniform")

SIGMA_FREQUENCIES = 128  # cosines and as many sines; SEDD's frequency_embedding_size is 256

# The backward pass keeps only the argument. What a matmul reads, normalised and modulated or GELU,
# costs less to compute again from it than to write and read; the matmul itself is not done again.
recomputed = functools.partial(jax.checkpoint, prevent_cse=False)


def stacked(config: ModelConfig, make: Callable[[nnx.Rngs], B], rngs: nnx.Rngs) -> B:
    """The layers as one module whose parameters have a first axis of config.depth."""

    @nnx.split_rngs(splits=config.depth)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def stack(rngs: nnx.Rngs) -> B:
        return make(rngs)

    return stack(rngs)


def through_layers(
    config: ModelConfig,
    hooks: LayoutHooks,
    blocks: B,
    run: Callable[[B, Array, Call], tuple[Array, Cache]],
    x: Array,
    call: Call,
) -> tuple[Array, Cache | None]:
    """Scans x through all layers.

    Args:
      config: of the model.
      hooks: of the layout.
      blocks: the layers, as `stacked` makes them.
      run: run(block, x, call of the layer) -> (x, cache of the layer).
      x: [B, L, D].
      call: for all layers, with dropout keys that each layer folds its index into.

    Returns:
      x after the last layer, and the caches of all layers if call.keep.
    """

    def layer(x: Array, block: B, index: Array, per_layer: Any) -> tuple[Array, Cache | None]:
        keys = fold_in_keys(call.dropout_keys, index)
        x, cache = run(block, x, call.of_layer(per_layer, keys))
        return hooks.constrain(x), cache if call.keep else None

    if config.remat != "none":
        layer = nnx.remat(layer, policy=REMAT_POLICIES[config.remat])
    scan = nnx.scan(layer, in_axes=(nnx.Carry, 0, 0, 0), out_axes=(nnx.Carry, 0))
    return scan(x, blocks, jnp.arange(config.depth), call.per_layer)


def update_cache(cache: Cache | None, new: Cache, positions: Array | None) -> Cache:
    """Writes the keys and values of new tokens into the cache of a layer.

    Args:
      cache: [B, M, H, D / H] each; None where the call has no cache.
      new: keys and values of n consecutive tokens, [B, n, H, D / H] each.
      positions: int32[n], of these tokens; only the first is read, and only with a cache.

    Returns:
      The updated cache; `new` where there is none.
    """
    if cache is None:
        return new
    assert positions is not None, "a cache needs the positions of the tokens"

    def write(old: Array, part: Array) -> Array:
        return jax.lax.dynamic_update_slice_in_dim(old, part, positions[0], axis=1)

    return write(cache[0], new[0]), write(cache[1], new[1])


def dropout(x: Array, keys: Array | None, site: int, rate: float) -> Array:
    """Sets entries of x [B, L, D] to zero at `rate` and rescales the rest.

    Each example has its own key, so that a layout does not change what is dropped.

    Args:
      x: [B, L, D].
      keys: key[B] of the layer; None without dropout.
      site: number of this dropout within the layer.
      rate: probability of an entry to be dropped.
    """
    if keys is None or rate == 0:
        return x
    # 16 random bits an entry are enough to hold the rate to 1e-5 and halve the cost.
    threshold = round(rate * 2**16)
    site_keys = fold_in_keys(keys, site)
    bits = jax.vmap(lambda key: jax.random.bits(key, x.shape[1:], jnp.uint16))(site_keys)
    keep = 1 - threshold / 2**16
    return jnp.where(bits >= threshold, x / keep, 0).astype(x.dtype)


def fold_in_keys(keys: Array | None, number: int | Array) -> Array | None:
    """jax.random.fold_in for the key[B] of a batch; None stays None."""
    return None if keys is None else jax.vmap(jax.random.fold_in, (0, None))(keys, number)


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


def has_adaln(config: ModelConfig) -> bool:
    """Whether the blocks are modulated, by sigma or by a constant."""
    return config.time in ("adaln", "constant")


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
    """Parameters of the head; a zero start gives every token the same probability."""

    def __init__(self, config: ModelConfig, padded_vocab: int):
        if not config.tied_head:
            self.kernel = nnx.Param(jnp.zeros((config.width, padded_vocab)))
        self.bias = nnx.Param(jnp.zeros((padded_vocab,)))


def layer_norm(config: ModelConfig, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm with the epsilon of all published networks, and a bias if the config has one."""
    return nnx.LayerNorm(
        config.width,
        epsilon=1e-5,
        use_bias=config.norm_bias,
        use_fast_variance=False,
        dtype=jnp.dtype(config.compute_dtype),
        promote_dtype=_cast_input_only,
        rngs=rngs,
    )


def _cast_input_only(arrays: T, /, *, dtype: Any = None, inexact: bool = True) -> T:
    """Leaves scale and bias in float32, in which their gradients are then summed."""
    del inexact
    x, *parameters = arrays
    return cast(T, (x.astype(dtype), *parameters))
