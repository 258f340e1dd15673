"""Attention masks of models that work from left to right, by blocks or by tokens.

A mask is bool[q, k], whether query q attends to key k, the same for all sequences. That of block
diffusion is from Arriola et al. 2025 (arXiv:2503.09573), appendix B.6.
"""

import jax
import jax.numpy as jnp


def block_diffusion(length: int, block_size: int) -> jax.Array:
    """The mask over [x_t, x_0], which trains every block in one pass: bool[2L, 2L].

    A noised token sees its own noised block and the clean blocks before it; a clean token sees its
    own clean block and those before it. So the outputs at x_t are those of L / block_size passes
    over [clean blocks, noised block] in which every position sees its own block and those before.
    """
    block = jnp.arange(length) // block_size
    q, k = block[:, None], block[None, :]
    return jnp.block([[q == k, q > k], [jnp.zeros((length, length), bool), q >= k]])


def shifted(x: jax.Array, mask_id: int) -> jax.Array:
    """The input from which a causal network predicts x: [m, x_1 .. x_{L-1}], int32[B, L].

    The mask, which no text contains, marks the beginning of the sequence.
    """
    return jnp.pad(x[:, :-1], ((0, 0), (1, 0)), constant_values=mask_id)
