"""Training objectives, one family a file, one signature (signature.py)."""

from ddm_jax.objectives import radd
from ddm_jax.objectives.signature import Batch, Loss, LossOutput, Noise, Objective

_RADD = {"metrics": ("masked",), "times": ("none",), "estimator": "radd_ao"}

OBJECTIVES = {
    "radd_t_dse": Objective(radd.t_dse, **_RADD),
    "radd_t_dce": Objective(radd.t_dce, **_RADD),
    "radd_lambda_dce": Objective(radd.lambda_dce, **_RADD),
    "radd_ao": Objective(radd.any_order, **_RADD),
}

__all__ = ["OBJECTIVES", "Batch", "Loss", "LossOutput", "Noise", "Objective"]
