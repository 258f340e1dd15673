"""What the losses of masked diffusion share: cross entropy at the masks, times some weight."""

import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.schedules import Schedule, grid
from ddm_jax.models.readout import Readout
from ddm_jax.objectives.signature import Batch, LossOutput, share


def masked_cross_entropy(
    readout: Readout, batch: Batch, xt: Array, mask_id: int, weight: Array
) -> LossOutput:
    """sum_masked -weight log p(x0_i given xt), as loss and as bound; weight float[b] or [b, L].

    readout: what the network said of xt (models/network.py). It gives the mask no probability, and
    nothing is asked of it where xt shows the token: MDLM's SUBS parameterisation (section 3.2.3).
    """
    masked = (xt == mask_id) & batch["valid"]
    weight = jnp.where(masked, weight.reshape(len(xt), -1), 0)
    loss = readout.cross_entropy(batch["tokens"], weight).sum(axis=1)
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
