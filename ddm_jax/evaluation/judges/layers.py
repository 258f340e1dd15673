"""Layers that the networks of judges share, in float32 and for inference only."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddm_jax.models.network import Params


def make_nats(
    params: Params, embedding: Array, hidden: Callable[[Params, Array], Array]
) -> Callable[[np.ndarray], Array]:
    """nats(tokens int32[B, W]) -> float32[B, W] of a causal network with a tied head.

    The first of a row is 0, since no token comes before it.

    Args:
      params: of `hidden`.
      embedding: float32[V, D], which is also the head.
      hidden: (params, tokens) -> float32[B, W, D], the final states.
    """

    @jax.jit
    def nats(params: Params, embedding: Array, tokens: Array) -> Array:
        def of_row(row: tuple[Array, Array]) -> Array:
            states, targets = row
            logits = states @ embedding.T
            target = jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
            return jax.nn.logsumexp(logits, axis=1) - target

        with jax.default_matmul_precision("highest"):
            states = hidden(params, tokens)
            # row by row, since [B, W, V] may not fit in memory
            found = jax.lax.map(of_row, (states[:, :-1], tokens[:, 1:]))
        return jnp.pad(found, ((0, 0), (1, 0)))

    return functools.partial(nats, params, embedding)


def stacked(layers: Sequence[Mapping[str, np.ndarray]]) -> dict[str, Array]:
    """The weights of all layers, stacked under each name, to scan over the first axis."""
    return {name: jnp.stack([layer[name] for layer in layers]) for name in layers[0]}


def layer_norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """LayerNorm over the last axis."""
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + epsilon) * scale + bias


def split_heads(x: Array, number: int) -> Array:
    """[B, L, D] -> [B, L, number, D / number]."""
    return x.reshape(*x.shape[:2], number, -1)
