"""What every objective takes and returns.

    loss(apply, params, batch, noise, process) -> LossOutput

apply(params, tokens, sigma=None, attend=None, positions=None) -> Readout is the network
(models/network.py); dropout, where wanted, is bound to it by the caller. A batch is {"tokens":
int32[b, L], "valid": bool[b, L]}; positions that are not valid are padding: never corrupted, and
without loss. `process` is the forward process. The arguments of a loss beyond these five have
defaults: they are its options, fields of config.objective.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
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
      on -log p(x0), or of what Objective.estimates says; None where the loss stands for neither.
      metrics: name -> float32[b].
    """

    loss: Array
    bound: Array | None
    metrics: dict[str, Array] = field(default_factory=dict)


Loss = Callable[..., LossOutput]

BOUND = "an upper bound"
EXACT = "exact"
PSEUDO = "a pseudo-likelihood, not comparable with bounds"

# x0: p(x0 | x_t) of each position (mask positions, under masking). score: log s_y, for SEDD's rules
# and scaled as its loss says. vector: x0 with a schedule for each token. blocks: x0 within a block,
# from those before it. next: the token at this position from those on its left.
PREDICTIONS = ("x0", "score", "vector", "blocks", "next")


@dataclass(frozen=True)
class Objective:
    """One row of the table.

    loss: the function. metrics: the names that its LossOutput has. processes, times: what
    config.process.name and model.time may be, its own first. predicts: what its networks say, which
    decides how they can be sampled. estimator: the objective that estimates the likelihood of its
    networks, itself if empty. estimates: what LossOutput.bound is. init:
    init(key, process, **options) -> the parameters that the objective learns beside the network's,
    which it finds in params["objective"].
    """

    loss: Loss
    metrics: tuple[str, ...] = ()
    processes: tuple[str, ...] = ("absorbing",)
    times: tuple[str, ...] = ("none", "constant", "adaln")
    estimator: str = ""
    estimates: str | None = BOUND
    predicts: tuple[str, ...] = ("x0",)
    init: Callable[[Array, Any], Any] | None = None


SAMPLING_EPS = 1e-3


def uniform_time(u: Array) -> Array:
    """t in [1e-3, 1], where SEDD, RADD, MDLM and Duo draw it: the weight diverges at 0."""
    return (1 - SAMPLING_EPS) * u + SAMPLING_EPS


def share(chosen: Array, batch: Batch) -> Array:
    """The share of the valid tokens that is chosen: bool[b, L] -> float32[b]."""
    chosen = chosen & batch["valid"]
    return chosen.sum(axis=1) / jnp.maximum(batch["valid"].sum(axis=1), 1)
