"""What the losses of masked diffusion share: cross entropy at the masks, times some weight."""

from typing import Any

import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.schedules import Schedule, grid
from ddm_jax.objectives.signature import Batch, LossOutput, share


def masked_cross_entropy(
    readout: Any, batch: Batch, xt: Array, mask_id: int
) -> tuple[Array, Array]:
    """(which valid positions are masked, -log p(x0_i given xt) there and 0 elsewhere), [b, L].

    readout: what the network said of xt (models/network.py). It gives the mask no probability, and
    nothing is asked of it where xt shows the token: MDLM's SUBS parameterisation (section 3.2.3).
    """
    masked = (xt == mask_id) & batch["valid"]
    logit, lse = readout.target(batch["tokens"])
    return masked, jnp.where(masked, lse - logit, 0)


def weighted(weight: Array, per_position: Array, masked: Array, batch: Batch) -> LossOutput:
    """weight[b] sum_i per_position[b, i], as loss and as bound."""
    loss = weight * per_position.sum(axis=1)
    return LossOutput(loss, loss, {"masked": share(masked, batch)})


def on_grid(u: Array, steps: int) -> Array:
    """i / T with i uniform on 1..T: float32[b] in (0, 1) -> float32[b]."""
    return (jnp.minimum(jnp.floor(u * steps), steps - 1) + 1) / steps


def time_weight(schedule: Schedule, t: Array, steps: int) -> Array:
    """What multiplies the masked cross entropy at a time t[b] drawn evenly from (0, 1).

    steps = 0, continuous time: -alpha'(t) / (1 - alpha(t)). steps = T, t on the grid of its
    multiples of 1/T: T (alpha_s - alpha_t) / (1 - alpha_t), s = t - 1/T (both in MDLM, section 3).
    """
    if not steps:
        return schedule.weight(t)
    alpha = grid(schedule, steps)
    table = steps * (alpha[:-1] - alpha[1:]) / (1 - alpha[1:])
    return jnp.asarray(table, t.dtype)[jnp.round(t * steps).astype(jnp.int32) - 1]
