"""The head as losses and samplers read it: target logits, log normalisers or full logits."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.models.call import Cache
from ddm_jax.models.head import LOGIT_BYTES, FusedLoss, weighted_losses
from ddm_jax.models.layout_hooks import SINGLE_DEVICE, LayoutHooks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Readout:
    """Final hidden states with the head that reads them.

    Attributes:
      hidden: [B, L, D].
      kernel: [D, V_pad].
      bias: [V_pad].
      vocab_size: only the first V ids are tokens: the mask and the padding never receive
        probability.
      cache: keys and values of every layer, where the call kept them.
      hooks: of the layout.
      gradient_dtype: in which devices add up the gradients of the head.
    """

    hidden: Array
    kernel: Array
    bias: Array
    vocab_size: int = field(metadata={"static": True})
    cache: Cache | None = None
    hooks: LayoutHooks = field(default=SINGLE_DEVICE, metadata={"static": True})
    gradient_dtype: str = field(default="float32", metadata={"static": True})

    def span(self, start: int | Array, length: int) -> "Readout":
        """The Readout of positions start .. start + length - 1."""
        hidden = jax.lax.dynamic_slice_in_dim(self.hidden, start, length, axis=1)
        return dataclasses.replace(self, hidden=hidden)

    def at(self, positions: Array) -> "Readout":
        """The Readout of positions int32[B, K], different ones in each sequence."""
        hidden = jnp.take_along_axis(self.hidden, positions[..., None], axis=1)
        return dataclasses.replace(self, hidden=hidden)

    def logits(self) -> Array:
        """float32[B, L, V] (float64 when the network computes in it)."""
        return self._logits(self.hidden)[..., : self.vocab_size]

    def target(self, targets: Array) -> tuple[Array, Array]:
        """Logit of each target and log sum exp over the vocabulary.

        Args:
          targets: int32[B, L], ids below `vocab_size`.

        Returns:
          (logit, lse), each float32[B, L]; cross entropy is lse - logit.
        """

        def read(logits: Array, ids: Array) -> tuple[Array, Array]:
            # to take by index, the compiler would gather the parts of the vocabulary
            take = take_logit if self.hooks.vocabulary_parts == 1 else pick_by_mask
            return take(logits, ids), jax.nn.logsumexp(logits, axis=-1)

        return self.read(read, targets)

    def cross_entropy(self, targets: Array, weight: Array) -> Array:
        """weight * -log p(target) in nats, by `losses`: float32[B, L], 0 where weight is 0."""
        return self.losses(token_nats, weight, targets)

    def losses(self, reduce: Callable[..., Array], weight: Array, *given: Array) -> Array:
        """weight * reduce(logits, *given) of each position: float32[B, L], 0 where weight is 0.

        Only positions with a weight are read, in chunks whose gradients are formed with their
        logits (models/head.py).

        Args:
          reduce: (logits float32[N, V], *given [N, ...]) -> float32[N], position by position; it
            closes over no array.
          weight: broadcasts to [B, L]. It has no gradient.
          *given: arrays [B, L, ...], without gradients.
        """
        weight = jnp.broadcast_to(weight, self.hidden.shape[:2])
        weight = jax.lax.stop_gradient(weight.astype(jnp.promote_types(weight.dtype, jnp.float32)))
        given = jax.lax.stop_gradient(given)
        fused = FusedLoss(reduce, self.vocab_size, self.gradient_dtype, self.hooks)
        return weighted_losses(fused, (self.hidden, weight, given), (self.kernel, self.bias))

    def read(self, reduce: Callable[..., Any], *given: Array) -> Any:
        """A function of the logits of each position, without ever holding all logits.

        Args:
          reduce: (logits float32[N, V], *given [N, ...]) -> arrays [N, ...], position by position.
          *given: arrays [B, L, ...].

        Returns:
          The arrays of `reduce` as [B, L, ...]. A device holds at most LOGIT_BYTES of logits at
          once, or those of one position of each of its sequences if they are more. Positions are
          then read in chunks, some of every sequence, and the backward pass computes their logits
          again.
        """

        def of_positions(hidden: Array, *given: Array) -> Any:
            return reduce(self._logits(hidden)[:, : self.vocab_size], *given)

        def of_rows(*rows: Array) -> Any:
            """Of [B, K, ...]; one axis for both is faster, unless devices split both."""
            if self.hooks.position_parts > 1:
                return jax.vmap(of_positions)(*rows)
            shape = rows[0].shape[:2]
            out = of_positions(*(x.reshape(-1, *x.shape[2:]) for x in rows))
            return jax.tree.map(lambda x: x.reshape(*shape, *x.shape[1:]), out)

        size, length = self.hidden.shape[:2]
        parts = self.hooks.batch_parts * self.hooks.position_parts
        logit_bytes = size * length * self.bias.shape[0] * 4 / parts
        chunks = min(math.ceil(logit_bytes / LOGIT_BYTES), length)
        if chunks == 1:
            return of_rows(self.hidden, *given)

        def split(x: Array) -> Array:
            """[B, L, ...] -> [chunks, B, L / chunks, ...], so that no row changes its device."""
            x = jnp.pad(x, [(0, 0), (0, -length % chunks)] + [(0, 0)] * (x.ndim - 2))
            return jnp.moveaxis(x.reshape(size, -1, chunks, *x.shape[2:]), 2, 0)

        def joined(x: Array) -> Array:
            return jnp.moveaxis(x, 0, 2).reshape(size, -1, *x.shape[3:])[:, :length]

        rows = jax.tree.map(split, (self.hidden, *given))
        out = jax.lax.map(jax.checkpoint(lambda chunk: of_rows(*chunk)), rows)
        return jax.tree.map(joined, out)

    def by_sequence(self, function: Callable[..., Any], *given: Array) -> Any:
        """Calls a function for every sequence, one at a time on each device.

        The backward pass calls it again. For losses that hold more than the logits at once.

        Args:
          function: (Readout of [1, L, D], *given [...] of the sequence) -> arrays.
          *given: arrays [B, ...].

        Returns:
          The arrays of `function`, stacked: [B, ...].
        """
        devices = self.hooks.batch_parts

        @jax.checkpoint
        @jax.vmap
        def of_sequence(hidden: Array, *given: Array) -> Any:
            return function(dataclasses.replace(self, hidden=hidden[None]), *given)

        def split(x: Array) -> Array:
            """[B, ...] -> [B / devices, devices, ...], so that no row changes its device."""
            return jnp.swapaxes(x.reshape(devices, -1, *x.shape[1:]), 0, 1)

        rows = jax.tree.map(split, (self.hidden, *given))
        out = jax.lax.map(lambda row: of_sequence(*row), rows)
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), out)

    def _logits(self, hidden: Array) -> Array:
        wide = jnp.promote_types(hidden.dtype, jnp.float32)
        kernel = self.kernel.astype(hidden.dtype)
        logits = jnp.dot(hidden, kernel, preferred_element_type=wide) + self.bias
        is_token = jnp.arange(self.bias.shape[0]) < self.vocab_size
        return jnp.where(is_token, logits, -jnp.inf)


def take_logit(values: Array, ids: Array) -> Array:
    """values[..., ids], one of each row: float[..., V], int32[...] -> float[...]."""
    return jnp.take_along_axis(values, ids[..., None], axis=-1)[..., 0]


def token_nats(logits: Array, targets: Array) -> Array:
    """-log p(target) in nats: float[..., V], int32[...] -> float[...]."""
    return jax.nn.logsumexp(logits, axis=-1) - pick_by_mask(logits, targets)


def pick_by_mask(values: Array, ids: Array) -> Array:
    """Like `take_logit`, by one-hot comparison; its gradient needs no scatter."""
    is_id = jnp.arange(values.shape[-1]) == ids[..., None]
    return jnp.where(is_id, values, 0).sum(axis=-1)
