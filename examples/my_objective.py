"""An objective outside ddm_jax: the cross entropy of masked tokens, all with the same weight.

    python -m ddm_jax.main --config=radd_tiny --workdir=work/mine \\
        --config.plugins=examples/my_objective.py --config.objective.name=flat_ce

RADD weighs a sequence with mask ratio lambda by 1 / lambda, which makes its loss a bound on
-log p(x0). This loss has no weight: it is not a bound, and the likelihood at validation is
estimated by RADD's `radd_ao`, which reads the network in the same way (docs/plugins.md).
"""

import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import Absorbing, mask_independently
from ddm_jax.models.network import Apply, Params
from ddm_jax.objectives import Batch, LossOutput, Noise, Objective


def flat_ce(
    apply: Apply, params: Params, batch: Batch, noise: Noise, process: Absorbing
) -> LossOutput:
    """2 sum_masked -log p(x0_i given x_lambda), lambda ~ U(0, 1); not a bound.

    The factor makes it nats per sequence: half of the tokens are masked on average.
    """
    x0, valid = batch["tokens"], batch["valid"]
    xt = mask_independently(noise.keys, x0, noise.u, process.mask_id, movable=valid)
    masked: Array = (xt == process.mask_id) & valid
    nats = apply(params, xt).cross_entropy(x0, jnp.where(masked, 2.0, 0.0)).sum(axis=1)
    share = masked.sum(axis=1) / jnp.maximum(valid.sum(axis=1), 1)
    return LossOutput(nats, bound=None, metrics={"masked": share})


OBJECTIVES = {
    "flat_ce": Objective(
        flat_ce,
        metrics=("masked",),
        times=("none", "constant"),
        estimator="radd_ao",
        estimates=None,
    ),
}
