"""What every objective takes and returns.

    loss(apply, params, batch, noise, process) -> LossOutput

apply(params, tokens, sigma=None) -> Readout is the network; dropout, where wanted, is bound to it
by the caller. A batch is {"tokens": int32[b, L], "valid": bool[b, L]}; positions that are not valid
are padding: never corrupted, and without loss. `process` is the forward process.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from jax import Array

Batch = Mapping[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noise:
    """The randomness of each example, which no layout changes (diffusion/randomness.py).

    u: float32[b] in (0, 1), stratified over the global batch; objectives turn it into a time, a
      mask ratio or a number of masks. keys: key[b].
    """

    u: Array
    keys: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossOutput:
    """Nats per sequence, summed over its valid tokens.

    loss: float32[b], what is minimised. bound: float32[b], an unbiased estimate of an upper bound
      on -log p(x0), or None where the loss stands for no bound. metrics: name -> float32[b].
    """

    loss: Array
    bound: Array | None
    metrics: dict[str, Array] = field(default_factory=dict)


Loss = Callable[[Callable[..., Any], Any, Batch, Noise, Any], LossOutput]


@dataclass(frozen=True)
class Objective:
    """One row of the table.

    loss: the function. metrics: the names that its LossOutput has. uses_time: whether it gives its
    network the time.
    """

    loss: Loss
    metrics: tuple[str, ...]
    uses_time: bool
