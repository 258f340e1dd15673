"""Training objectives, one family a file, one signature (signature.py)."""

from ddm_jax.objectives import ar, bd3lm, d3pm, genmd4, gidd, md4, mdlm, mlm, radd, rdm, sedd, udlm
from ddm_jax.objectives.signature import EXACT, PSEUDO, Batch, Loss, LossOutput, Noise, Objective

_NO_TIME = ("none", "constant")
_ANY_TIME = ("adaln", "input", "none", "constant")
_RADD = {"metrics": ("masked",), "times": _NO_TIME, "estimator": "radd_ao"}
_D3PM = {
    "processes": ("d3pm_absorbing", "d3pm_uniform", "d3pm_gaussian", "d3pm_nearest"),
    "times": _ANY_TIME,
}
_RDM = {
    "metrics": ("noised",),
    "times": ("input", "adaln", "none", "constant"),
    "estimator": "d3pm",
    "estimates": None,
}

OBJECTIVES = {
    "radd_t_dse": Objective(radd.t_dse, **_RADD),
    "radd_t_dce": Objective(radd.t_dce, **_RADD),
    "radd_lambda_dce": Objective(radd.lambda_dce, **_RADD),
    "radd_ao": Objective(radd.any_order, **_RADD),
    "sedd_absorb": Objective(
        sedd.absorb, metrics=("masked",), times=_ANY_TIME, predicts=("score", "x0")
    ),
    "sedd_uniform": Objective(
        sedd.uniform,
        metrics=("noised",),
        processes=("uniform",),
        times=("adaln", "input"),
        predicts=("score",),
    ),
    "mdlm": Objective(mdlm.mdlm, metrics=("masked",), times=("constant", "none", "adaln", "input")),
    "md4": Objective(md4.md4, metrics=("masked",), times=_ANY_TIME),
    "genmd4": Objective(
        genmd4.genmd4,
        metrics=("masked", "power_min", "power_max"),
        times=_ANY_TIME,
        predicts=("vector",),
        init=genmd4.init,
    ),
    "bd3lm": Objective(bd3lm.bd3lm, metrics=("masked",), times=_NO_TIME, predicts=("blocks",)),
    "ar": Objective(ar.ar, times=_NO_TIME, estimates=EXACT, predicts=("next",)),
    "mlm": Objective(
        mlm.mlm,
        metrics=("selected",),
        times=_NO_TIME,
        estimator="mlm_pseudo",
        estimates=None,
    ),
    "mlm_pseudo": Objective(mlm.mlm_pseudo, metrics=("masked",), times=_NO_TIME, estimates=PSEUDO),
    "udlm": Objective(
        udlm.udlm, metrics=("noised",), processes=("uniform",), times=("adaln", "input")
    ),
    "gidd": Objective(gidd.gidd, metrics=("noised",), processes=("hybrid",), times=_ANY_TIME),
    "d3pm": Objective(d3pm.d3pm, metrics=("ce",), **_D3PM),
    "d3pm_ce": Objective(d3pm.d3pm_ce, estimator="d3pm", estimates=None, **_D3PM),
    "rdm_absorb": Objective(rdm.rdm, processes=("d3pm_absorbing",), **_RDM),
    "rdm_multinomial": Objective(rdm.rdm, processes=("d3pm_uniform",), **_RDM),
}

__all__ = ["OBJECTIVES", "Batch", "Loss", "LossOutput", "Noise", "Objective"]
