"""Shared by the losses of masked diffusion: weighted cross entropy at the masks."""

import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.schedules import Schedule, grid
from ddm_jax.models.readout import Readout
from ddm_jax.objectives.signature import Batch, LossOutput, share


def masked_cross_entropy(
    readout: Readout, batch: Batch, xt: Array, mask_id: int, weight: Array
) -> LossOutput:
    """sum_masked -weight log p(x0_i given xt), as loss and as bound.

    The mask has no probability, and positions where xt shows the token have no loss: MDLM's SUBS
    parameterisation (section 3.2.3).

    Args:
      readout: the network's output for xt (models/readout.py).
      batch: the clean tokens.
      xt: int32[b, L].
      mask_id: the id of the mask.
      weight: float[b] or [b, L].
    """
    masked = (xt == mask_id) & batch["valid"]
    weight = jnp.where(masked, weight.reshape(len(xt), -1), 0)
    loss = readout.cross_entropy(batch["tokens"], weight).sum(axis=1)
    return LossOutput(loss, loss, {"masked": share(masked, batch)})


def on_grid(u: Array, steps: int) -> Array:
    """i / T with i uniform on 1..T: float32[b] in (0, 1) -> float32[b]."""
    return (jnp.minimum(jnp.floor(u * steps), steps - 1) + 1) / steps


def time_weight(schedule: Schedule, t: Array, steps: int) -> Array:
    """The weight of the masked cross entropy at a time t[b] drawn uniformly from (0, 1): float[b].

    steps = 0, continuous time: -alpha'(t) / (1 - alpha(t)). steps = T, t on the grid of its
    multiples of 1/T: T (alpha_s - alpha_t) / (1 - alpha_t), s = t - 1/T (both in MDLM, section 3).
    """
    if not steps:
        return schedule.weight(t)
    alpha = grid(schedule, steps)
    table = steps * (alpha[:-1] - alpha[1:]) / (1 - alpha[1:])
    return jnp.asarray(table, t.dtype)[jnp.round(t * steps).astype(jnp.int32) - 1]
