"""The arguments of one evaluation of a network, from `Network.apply` down to each layer."""

import dataclasses
from dataclasses import dataclass

from jax import Array

from ddm_jax.models.attention import Attend
from ddm_jax.models.source_memory import Memory

Cache = tuple[
    Array, Array
]  # keys and values, [layers, B, M, H, D / H] each; in a layer [B, M, ...]


@dataclass(frozen=True)
class Call:
    """How a network is evaluated on tokens int32[B, L]; `Network` explains what each field does.

    Within the layers it holds what one layer needs (`of_layer`): `attend` then includes `seen` and,
    in a prefix model, covers the source's keys followed by the target's.

    Attributes:
      attend: which keys a query sees.
      positions: int32[L], for the rotary angles or the learned positions; None for 0..L-1.
      dropout_keys: key[B], one for each example; None without dropout.
      cache: keys and values of M positions, into which those of the tokens are written.
      keep: whether the call returns a cache.
      read: int32[B, K], the only tokens whose hidden states are needed; None for all.
      memory: keys and values of the source.
      seen: bool[B, L] (with a cache bool[B, M]), False for padding; None if all are seen.
    """

    attend: Attend = None
    positions: Array | None = None
    dropout_keys: Array | None = None
    cache: Cache | None = None
    keep: bool = False
    read: Array | None = None
    memory: Memory | None = None
    seen: Array | None = None

    @property
    def per_layer(self) -> tuple[Cache | None, Cache | None]:
        """The arrays whose first axis is the layer: the cache, and the source's keys and values."""
        memory = self.memory
        return self.cache, None if memory is None else (memory.k, memory.v)

    def of_layer(
        self, per_layer: tuple[Cache | None, Cache | None], dropout_keys: Array | None
    ) -> "Call":
        """The call of one layer: its slice of `per_layer`, and dropout keys of its own."""
        cache, source = per_layer
        memory = self.memory
        if memory is not None and source is not None:
            memory = dataclasses.replace(memory, k=source[0], v=source[1])
        return dataclasses.replace(self, dropout_keys=dropout_keys, cache=cache, memory=memory)
