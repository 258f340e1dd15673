"""Linear layers and embeddings whose gradients are summed in float32.

A layer computes in its compute dtype; its parameters are float32. If the weights were cast before
the matmul, automatic differentiation would return their gradient in bfloat16, and the sums of it
over devices, and over the rows of an embedding, would be in bfloat16 too. Here the gradient leaves
the matmul, which accumulates in float32 anyway, in `gradient_dtype`.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from ddm_jax.config import ModelConfig
from ddm_jax.models.layout_hooks import LayoutHooks

MATMUL = "matmul"  # checkpoint name of what a matmul returns


class Linear(nnx.Module):
    """[..., *inputs] -> [..., *outputs], with or without a bias.

    The kernel, float32[*inputs, *outputs], is drawn as a matrix of prod(inputs) and prod(outputs).
    """

    def __init__(
        self,
        config: ModelConfig,
        inputs: int | Sequence[int],
        outputs: int | Sequence[int],
        rngs: nnx.Rngs,
        init: nnx.Initializer,
        bias: bool = True,
    ):
        self.dtype = jnp.dtype(config.compute_dtype)
        self.gradient_dtype = jnp.promote_types(config.gradient_dtype, self.dtype)
        inputs, outputs = (tuple(x) if isinstance(x, Sequence) else (x,) for x in (inputs, outputs))
        kernel = init(rngs.params(), (math.prod(inputs), math.prod(outputs)))
        self.axes = len(inputs)
        self.kernel = nnx.Param(kernel.reshape(*inputs, *outputs))
        self.bias = nnx.Param(jnp.zeros(outputs)) if bias else nnx.data(None)

    def __call__(self, x: Array) -> Array:
        """[..., *inputs] -> [..., *outputs] in the compute dtype."""
        kernel = self.kernel[...]
        y = matmul(self.axes, self.gradient_dtype, x.astype(self.dtype), kernel)
        y = checkpoint_name(y, MATMUL)  # remat may save it; remat does not look into custom_vjp
        return y if self.bias is None else add_bias(y, self.bias[...])


class Embedding(nnx.Module):
    """ids int32[...] -> [..., width] in the compute dtype."""

    def __init__(
        self,
        config: ModelConfig,
        number: int,
        hooks: LayoutHooks,
        rngs: nnx.Rngs,
        init: nnx.Initializer,
    ):
        self.hooks = hooks
        self.dtype = jnp.dtype(config.compute_dtype)
        self.embedding = nnx.Param(init(rngs.params(), (number, config.width)))

    def __call__(self, ids: Array) -> Array:
        """The rows of these ids."""
        return self.hooks.lookup(self.embedding[...], ids, self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def matmul(axes: int, gradient_dtype: DTypeLike, x: Array, kernel: Array) -> Array:
    """x [..., *I] times kernel [*I, *O], cast to x.dtype, over the `axes` dimensions I: [..., *O].

    The gradient of the kernel leaves its matmul in gradient_dtype.
    """
    del gradient_dtype
    return _contracted(x, kernel.astype(x.dtype), range(x.ndim - axes, x.ndim), range(axes))


def add_bias(y: Array, bias: Array) -> Array:
    """y [..., *O] + bias [*O], in y.dtype; the gradient of the bias is summed in float32."""
    wide = jnp.promote_types(y.dtype, bias.dtype)
    return (y.astype(wide) + bias).astype(y.dtype)


def _forward(
    axes: int, gradient_dtype: DTypeLike, x: Array, kernel: Array
) -> tuple[Array, tuple[Array, Array]]:
    return matmul(axes, gradient_dtype, x, kernel), (x, kernel)


def _backward(
    axes: int, gradient_dtype: DTypeLike, saved: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
    x, kernel = saved
    lead = range(x.ndim - axes)
    outputs = range(kernel.ndim - axes)
    dx = _contracted(
        g, kernel.astype(x.dtype), [len(lead) + i for i in outputs], [axes + i for i in outputs]
    )
    # XLA on a CPU transposes the first factor, so that is the smaller one; in bfloat16 it cannot
    # always
    if g.size < x.size and x.dtype != jnp.bfloat16:
        dkernel = _contracted(g, x, lead, lead, gradient_dtype)
        dkernel = jnp.moveaxis(dkernel, range(len(outputs)), range(-len(outputs), 0))
    else:
        dkernel = _contracted(x, g, lead, lead, gradient_dtype)
    return dx, dkernel.astype(kernel.dtype)


matmul.defvjp(_forward, _backward)


def _contracted(
    a: Array, b: Array, of_a: Sequence[int], of_b: Sequence[int], dtype: DTypeLike | None = None
) -> Array:
    return jax.lax.dot_general(
        a, b, ((tuple(of_a), tuple(of_b)), ((), ())), preferred_element_type=dtype
    )
