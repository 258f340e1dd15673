"""Training objectives: a file per family, a row per objective, one signature (signature.py)."""

from ddm_jax.config_fields import Option
from ddm_jax.objectives import ar, bd3lm, d3pm, genmd4, gidd, md4, mdlm, mlm, radd, rdm, sedd, udlm
from ddm_jax.objectives.signature import EXACT, PSEUDO, Batch, Loss, LossOutput, Noise, Objective

NO_TIME = ("none", "constant")
ANY_TIME = ("adaln", "input", "none", "constant")
D3PM_PROCESSES = ("d3pm_absorbing", "d3pm_uniform", "d3pm_gaussian", "d3pm_nearest")
RDM_OPTIONS = (
    Option("weighting", "linear", choices=tuple(rdm.WEIGHTINGS)),
    Option("q_sample", "default"),
    Option("label_smoothing", 0.1),
)

OBJECTIVES = {
    "radd_t_dse": Objective(radd.t_dse, metrics=("masked",), times=NO_TIME, estimator="radd_ao"),
    "radd_t_dce": Objective(radd.t_dce, metrics=("masked",), times=NO_TIME, estimator="radd_ao"),
    "radd_lambda_dce": Objective(
        radd.lambda_dce, metrics=("masked",), times=NO_TIME, estimator="radd_ao"
    ),
    "radd_ao": Objective(radd.any_order, metrics=("masked",), times=NO_TIME, estimator="radd_ao"),
    "sedd_absorb": Objective(
        sedd.absorb,
        options=(Option("scale_by_sigma", True),),
        metrics=("masked",),
        times=ANY_TIME,
        predicts=("score", "x0"),
    ),
    "sedd_uniform": Objective(
        sedd.uniform,
        metrics=("noised",),
        processes=("uniform",),
        times=("adaln", "input"),
        predicts=("score",),
    ),
    "mdlm": Objective(
        mdlm.mdlm,
        options=(Option("steps", 0), Option("importance", False)),
        metrics=("masked",),
        times=("constant", "none", "adaln", "input"),
    ),
    "md4": Objective(md4.md4, options=(Option("steps", 0),), metrics=("masked",), times=ANY_TIME),
    "genmd4": Objective(
        genmd4.genmd4,
        metrics=("masked", "power_min", "power_max"),
        times=ANY_TIME,
        predicts=("vector",),
        init=genmd4.init,
        init_options=(Option("power", 1.0),),
    ),
    "bd3lm": Objective(
        bd3lm.bd3lm,
        options=(Option("block_size", 4), Option("clip_low", 0.0), Option("clip_high", 1.0)),
        bound_with={"clip_low": 0.0, "clip_high": 1.0},
        metrics=("masked",),
        times=NO_TIME,
        predicts=("blocks",),
    ),
    "ar": Objective(ar.ar, times=NO_TIME, estimates=EXACT, predicts=("next",)),
    "mlm": Objective(
        mlm.mlm,
        metrics=("selected",),
        times=NO_TIME,
        estimator="mlm_pseudo",
        estimates=None,
    ),
    "mlm_pseudo": Objective(mlm.mlm_pseudo, metrics=("masked",), times=NO_TIME, estimates=PSEUDO),
    "udlm": Objective(
        udlm.udlm, metrics=("noised",), processes=("uniform",), times=("adaln", "input")
    ),
    "gidd": Objective(
        gidd.gidd,
        options=(Option("weighting", "dynamic", choices=gidd.WEIGHTINGS),),
        bound_with={"weighting": "elbo"},
        metrics=("noised",),
        processes=("hybrid",),
        times=ANY_TIME,
    ),
    "d3pm": Objective(
        d3pm.d3pm,
        options=(Option("ce_weight", 0.0),),
        bound_with={"ce_weight": 0.0},
        metrics=("ce",),
        processes=D3PM_PROCESSES,
        times=ANY_TIME,
    ),
    "d3pm_ce": Objective(
        d3pm.d3pm_ce,
        processes=D3PM_PROCESSES,
        times=ANY_TIME,
        estimator="d3pm",
        estimates=None,
    ),
    "rdm_absorb": Objective(
        rdm.rdm,
        options=RDM_OPTIONS,
        metrics=("noised",),
        processes=("d3pm_absorbing",),
        times=("input", "adaln", "none", "constant"),
        estimator="d3pm",
        estimates=None,
    ),
    "rdm_multinomial": Objective(
        rdm.rdm,
        options=RDM_OPTIONS,
        metrics=("noised",),
        processes=("d3pm_uniform",),
        times=("input", "adaln", "none", "constant"),
        estimator="d3pm",
        estimates=None,
    ),
}

__all__ = ["OBJECTIVES", "Batch", "Loss", "LossOutput", "Noise", "Objective"]
