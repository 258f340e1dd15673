"""The train state: everything that a restart needs, the loader's position aside."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ddm_jax.models.network import Network


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A pytree.

    step: int32[], batches seen. updates: int32[], those of them that changed the parameters.
    bad_in_a_row: int32[], non-finite steps since the last update. params, ema: nested dicts of
    float32. opt_state: optax's. window: sums of metrics since the last log, float32[] each, so
    that a logged mean survives a restart.
    """

    step: Array
    updates: Array
    bad_in_a_row: Array
    params: Any
    ema: Any
    opt_state: Any
    window: dict[str, Array]


def init_state(
    network: Network, optimizer: optax.GradientTransformation, key: Array, metrics: tuple[str, ...]
) -> TrainState:
    """A fresh state; `metrics` are the names that the train step sums in its window."""
    params = network.init(key)

    def zero() -> Array:
        return jnp.zeros((), jnp.int32)

    return TrainState(
        step=zero(),
        updates=zero(),
        bad_in_a_row=zero(),
        params=params,
        ema=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        window={name: jnp.zeros(()) for name in (*metrics, "good_steps")},
    )
