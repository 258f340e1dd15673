"""What every objective takes and returns.

    loss(apply, params, batch, noise, process, **options) -> LossOutput

apply(params, tokens, sigma=None, attend=None, positions=None) -> Readout is the network
(models/network.py); the caller binds dropout to it, if any. A batch is {"tokens":
int32[b, L], "valid": bool[b, L]}; positions that are not valid are padding: never corrupted, and
without loss. `process` is the forward process. The options are fields of config.objective, which
the row of the objective names (Objective.options).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.config_fields import Option

Batch = Mapping[str, Array]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noise:
    """The randomness of each example, the same under every layout (diffusion/randomness.py).

    Attributes:
      u: float32[b] in (0, 1), stratified over the global batch; objectives turn it into a time, a
        mask ratio or a number of masks.
      keys: key[b].
    """

    u: Array
    keys: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossOutput:
    """Nats per sequence, summed over its valid tokens.

    Attributes:
      loss: float32[b], minimised in training.
      bound: float32[b], an unbiased estimate of an upper bound on -log p(x0), or of the quantity
        that Objective.estimates names; None where the loss gives neither.
      metrics: name -> float32[b].
    """

    loss: Array
    bound: Array | None
    metrics: dict[str, Array] = field(default_factory=dict)


Loss = Callable[..., LossOutput]

BOUND = "an upper bound"
EXACT = "exact"
PSEUDO = "a pseudo-likelihood, not comparable with bounds"


@dataclass(frozen=True)
class Objective:
    """One row of the table of objectives.

    Attributes:
      loss: the function.
      options: the fields of config.objective that `loss` takes, with their defaults.
      metrics: the names in LossOutput.metrics.
      processes: what config.process.name may be, the default first.
      times: what config.model.time may be, the default first.
      estimator: the objective that estimates the likelihood of its networks; empty for itself.
      estimates: what LossOutput.bound is (BOUND, EXACT or PSEUDO), or None where there is none.
      bound_with: the options with which LossOutput.loss estimates the same as LossOutput.bound;
        with others it weighs tokens differently, and the two are not comparable.
      predicts: what its networks predict, which decides how they can be sampled. "x0": p(x0 | x_t)
        of each position (mask positions, under masking). "score": log s_y, for SEDD's rules and
        scaled as its loss says. "vector": x0 with a schedule for each token. "blocks": x0 within a
        block, given the blocks before it. "next": the token at this position given those on its
        left.
      init: `init(key, process, **init_options)` makes the parameters that the objective learns in
        addition to the network's; it finds them in params["objective"]. None if there are none.
      init_options: the fields of config.objective that `init` takes, with their defaults.
    """

    loss: Loss
    options: tuple[Option, ...] = ()
    metrics: tuple[str, ...] = ()
    processes: tuple[str, ...] = ("absorbing",)
    times: tuple[str, ...] = ("none", "constant", "adaln")
    estimator: str = ""
    estimates: str | None = BOUND
    bound_with: Mapping[str, Any] = field(default_factory=dict)
    predicts: tuple[str, ...] = ("x0",)
    init: Callable[..., Any] | None = None
    init_options: tuple[Option, ...] = ()

    def loss_is_bound(self, options: Mapping[str, Any]) -> bool:
        """Whether the training loss with these options has the units of the bound."""
        return self.estimates is not None and all(
            options[name] == value for name, value in self.bound_with.items()
        )


SAMPLING_EPS = 1e-3


def uniform_time(u: Array) -> Array:
    """t in [1e-3, 1], where SEDD, RADD, MDLM and Duo draw it: the weight diverges at 0."""
    return (1 - SAMPLING_EPS) * u + SAMPLING_EPS


def share(chosen: Array, batch: Batch) -> Array:
    """The share of the valid tokens that is chosen: bool[b, L] -> float32[b]."""
    chosen = chosen & batch["valid"]
    return chosen.sum(axis=1) / jnp.maximum(batch["valid"].sum(axis=1), 1)
