"""Training objectives, one family a file, one signature (signature.py)."""

from ddm_jax.objectives import radd
from ddm_jax.objectives.signature import Batch, Loss, LossOutput, Noise, Objective

OBJECTIVES = {
    "radd_t_dse": Objective(radd.t_dse, ("masked",), uses_time=False),
    "radd_t_dce": Objective(radd.t_dce, ("masked",), uses_time=False),
    "radd_lambda_dce": Objective(radd.lambda_dce, ("masked",), uses_time=False),
    "radd_ao": Objective(radd.any_order, ("masked",), uses_time=False),
}

__all__ = ["OBJECTIVES", "Batch", "Loss", "LossOutput", "Noise", "Objective"]
