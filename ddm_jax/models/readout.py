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
from ddm_jax.models.head import LOGIT_BYTES, weighted_losses
from ddm_jax.models.layout_hooks import SINGLE_DEVICE, LayoutHooks


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Readout:
    """Final hidden states [B, L, D] with the head that reads them.

    `kernel` is [D, V_pad] and `bias` [V_pad]; only the first `vocab_size` ids are tokens: the mask
    and the padding never receive probability. `cache`, where the call kept one, is the keys and
    values of every layer. `gradient_dtype`: in which devices add up the gradients of the head.
    """

    hidden: Array
    kernel: Array
    bias: Array
    vocab_size: int = field(metadata={"static": True})
    cache: Cache | None = None
    hooks: LayoutHooks = field(default=SINGLE_DEVICE, metadata={"static": True})
    gradient_dtype: str = field(default="float32", metadata={"static": True})

    def span(self, start: int | Array, length: int) -> "Readout":
        """That of positions start .. start + length - 1 alone."""
        hidden = jax.lax.dynamic_slice_in_dim(self.hidden, start, length, axis=1)
        return dataclasses.replace(self, hidden=hidden)

    def at(self, positions: Array) -> "Readout":
        """That of these positions alone, other ones in each sequence: int32[B, K]."""
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
            of = take_logit if self.hooks.vocabulary_parts == 1 else pick_by_mask
            return of(logits, ids), jax.nn.logsumexp(logits, axis=-1)

        return self.read(read, targets)

    def cross_entropy(self, targets: Array, weight: Array) -> Array:
        """weight * -log p(target), nats: float32[B, L], 0 where weight is 0; as in `losses`."""
        return self.losses(token_nats, weight, targets)

    def losses(self, reduce: Callable[..., Array], weight: Array, *given: Array) -> Array:
        """weight * reduce(logits, *given) of each position: float32[B, L], 0 where weight is 0.

        Only positions that have a weight are read, in chunks whose gradients are formed with them
        (models/head.py).

        Args:
          reduce: (logits float32[N, V], *given [N, ...]) -> float32[N], position by position; it
            closes over no array.
          weight: broadcasts to [B, L]. Nothing is differentiated by it, nor by what is given.
          *given: arrays [B, L, ...].
        """
        weight = jnp.broadcast_to(weight, self.hidden.shape[:2])
        weight = jax.lax.stop_gradient(weight.astype(jnp.promote_types(weight.dtype, jnp.float32)))
        given = jax.lax.stop_gradient(given)
        return weighted_losses(
            reduce,
            self.vocab_size,
            self.gradient_dtype,
            self.hooks,
            (self.hidden, weight, given),
            (self.kernel, self.bias),
        )

    def read(self, reduce: Callable[..., Any], *given: Array) -> Any:
        """What a loss wants of the logits of each position, without ever holding all of them.

        Args:
          reduce: (logits float32[N, V], *given [N, ...]) -> arrays [N, ...], position by position.
          *given: arrays [B, L, ...].

        Returns:
          The arrays of `reduce` as [B, L, ...]. A device holds LOGIT_BYTES of logits at once, if
          not one position of each of its sequences is more: beyond that the positions are read in
          chunks, some of every sequence, and the backward pass computes their logits again.
        """

        def of_positions(hidden: Array, *given: Array) -> Any:
            return reduce(self._logits(hidden)[:, : self.vocab_size], *given)

        def of_rows(*rows: Array) -> Any:
            """Of [B, K, ...] arrays; one axis for both is faster, if devices do not split both."""
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
            """[B, L, ...] -> [chunks, B, L / chunks, ...], so that devices keep what they have."""
            x = jnp.pad(x, [(0, 0), (0, -length % chunks)] + [(0, 0)] * (x.ndim - 2))
            return jnp.moveaxis(x.reshape(size, -1, chunks, *x.shape[2:]), 2, 0)

        def joined(x: Array) -> Array:
            return jnp.moveaxis(x, 0, 2).reshape(size, -1, *x.shape[3:])[:, :length]

        rows = jax.tree.map(split, (self.hidden, *given))
        out = jax.lax.map(jax.checkpoint(lambda chunk: of_rows(*chunk)), rows)
        return jax.tree.map(joined, out)

    def by_sequence(self, function: Callable[..., Any], *given: Array) -> Any:
        """function(Readout of [1, L, D], *given [...] of the sequence) for every sequence.

        One at a time on each device, and again in the backward pass: for losses that need more
        than the logits at once. given: [B, ...]; results are stacked, [B, ...].
        """
        devices = self.hooks.batch_parts

        @jax.checkpoint
        @jax.vmap
        def of_sequence(hidden: Array, *given: Array) -> Any:
            return function(dataclasses.replace(self, hidden=hidden[None]), *given)

        def split(x: Array) -> Array:
            """[B, ...] -> [B / devices, devices, ...], so that devices keep what they have."""
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
    """-log p(target): float[..., V], int32[...] -> float[...]."""
    return jax.nn.logsumexp(logits, axis=-1) - pick_by_mask(logits, targets)


def pick_by_mask(values: Array, ids: Array) -> Array:
    """The same by a comparison with every id, whose gradient is no scatter."""
    is_id = jnp.arange(values.shape[-1]) == ids[..., None]
    return jnp.where(is_id, values, 0).sum(axis=-1)
