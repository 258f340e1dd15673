"""The train state: everything that a restart needs, except the position of the loader."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from jax import Array

from ddm_jax.models.network import Network, Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """A pytree.

    Attributes:
      step: int32[], batches seen.
      updates: int32[], those of them that changed the parameters.
      bad_in_a_row: int32[], non-finite steps since the last update.
      params: nested dict of float32 arrays.
      ema: running average of params, likewise.
      opt_state: the state of the optax optimizer.
      window: sums of metrics since the last log, float32[] each, so that a logged mean survives a
        restart.
    """

    step: Array
    updates: Array
    bad_in_a_row: Array
    params: Params
    ema: Params
    opt_state: optax.OptState
    window: dict[str, Array]


def init_state(
    network: Network, optimizer: optax.GradientTransformation, key: Array, metrics: tuple[str, ...]
) -> TrainState:
    """A fresh state.

    Args:
      network: gives the parameters.
      optimizer: gives its state.
      key: key[], of the parameters.
      metrics: names that the train step sums in its window (`metric_names`).
    """
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
