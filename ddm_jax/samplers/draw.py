"""Draws of tokens: temperature, top-k, top-p, and writing into a few of many positions.

Reading the head and racing all V tokens costs more than a small network's layers, so `fill` does
both only at the chosen positions. Every draw has the key of its own position: it depends on no
chunking, batch size or number of steps.
"""

from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.categorical import categorical
from ddm_jax.models.head import LOGIT_BYTES
from ddm_jax.samplers.signature import SampleSpec

FEW = 8  # positions of each sequence that are read at once, if no sequence has more
ROWS = 256  # positions over all sequences that are read at once, if some sequence has more


def filtered(logits: Array, spec: SampleSpec) -> Array:
    """The logits to draw from: float[..., V] -> float32[..., V], the best 0, excluded ones -inf.

    Temperature first, then the top_k best, then of these the smallest set of the best whose
    probability reaches top_p (Holtzman et al. 2019, arXiv:1904.09751; the token that crosses is
    kept). Tokens as likely as the last one kept are kept with it.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    logits -= logits.max(axis=-1, keepdims=True)
    logits /= jnp.maximum(spec.temperature, 1e-30)
    vocab_size = logits.shape[-1]

    def cut(logits: Array) -> Array:
        descending = -jnp.sort(-logits, axis=-1)
        k = jnp.where(spec.top_k > 0, jnp.minimum(spec.top_k, vocab_size), vocab_size)
        descending = jnp.where(jnp.arange(vocab_size) < k, descending, -jnp.inf)
        p = jax.nn.softmax(descending, axis=-1)
        before = jnp.cumsum(p, axis=-1) - p
        kept = ((before < spec.top_p) | (spec.top_p >= 1)).sum(axis=-1, keepdims=True)
        last = jnp.take_along_axis(descending, jnp.minimum(kept, k) - 1, axis=-1)
        return jnp.where(logits >= last, logits, -jnp.inf)

    cuts = (jnp.asarray(spec.top_k) > 0) | (jnp.asarray(spec.top_p) < 1)
    left: Array = jax.lax.cond(cuts, cut, lambda logits: logits, logits)
    return left


def draw(keys: Array, logits: Array, spec: SampleSpec) -> Array:
    """Tokens int32[...] from logits float[..., V]; keys as in `categorical`."""
    return categorical(keys, filtered(logits, spec))


def position_keys(keys: Array, at: Array) -> Array:
    """A key for each position of each sequence: key[B], int32[B, K] -> key[B, K]."""
    return jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, at)


class LogitReader(Protocol):
    """What draws read of a network's Readout: the logits at some positions."""

    @property
    def bias(self) -> Array:
        """That of the head, float[V_pad]."""
        ...

    def at(self, positions: Array, /) -> "LogitReader":
        """That of these positions, which differ between sequences: int32[B, K]."""
        ...

    def logits(self) -> Array:
        """float[B, K, V]."""
        ...


def fill(keys: Array, x: Array, chosen: Array, readout: LogitReader, spec: SampleSpec) -> Array:
    """Draws x_i from the network's law where chosen.

    The head is read and random numbers are made only at the chosen positions, some at a time.

    Args:
      keys: key[B]; the draw at position i is made with fold_in(key, i).
      x: int32[B, L].
      chosen: bool[B, L].
      readout: of all positions of x.
      spec: how tokens are drawn.

    Returns:
      int32[B, L], x elsewhere.
    """
    count, length = x.shape
    numbers = chosen.sum(axis=1).max()

    def in_chunks_of(size: int) -> Callable[[Array], Array]:
        at_all = positions_of(chosen, length + size)

        def chunk(i: Array, x: Array) -> Array:
            at = jax.lax.dynamic_slice_in_dim(at_all, i * size, size, axis=1)
            return write(keys, x, at, readout.at(jnp.minimum(at, length - 1)), spec)

        return lambda x: jax.lax.fori_loop(0, -(-numbers // size), chunk, x)

    most = max(LOGIT_BYTES // (4 * count * readout.bias.shape[0]), 1)
    many = min(max(ROWS // count, FEW), most, length)
    if many <= FEW:
        return in_chunks_of(many)(x)
    filled: Array = jax.lax.cond(numbers <= FEW, in_chunks_of(FEW), in_chunks_of(many), x)
    return filled


def write(keys: Array, x: Array, at: Array, readout: LogitReader, spec: SampleSpec) -> Array:
    """Draws x_i at some positions.

    Args:
      keys: as in `fill`.
      x: int32[B, L].
      at: int32[B, K], the positions; L for none.
      readout: of these positions.
      spec: how tokens are drawn.

    Returns:
      int32[B, L], x elsewhere.
    """
    tokens = draw(position_keys(keys, at), readout.logits(), spec)
    written: Array = jax.vmap(lambda x, at, new: x.at[at].set(new, mode="drop"))(x, at, tokens)
    return written


def positions_of(chosen: Array, size: int) -> Array:
    """The first `size` positions where bool[B, L], in order, then L: int32[B, size]."""
    return jax.vmap(lambda row: jnp.nonzero(row, size=size, fill_value=len(row))[0])(chosen).astype(
        jnp.int32
    )
