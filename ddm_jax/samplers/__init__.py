"""Samplers: a file per family, a row per sampler, one signature (signature.py)."""

from ddm_jax.config_fields import Option
from ddm_jax.samplers.adaptive import confidence, entropy, margin
from ddm_jax.samplers.analytic import analytic
from ddm_jax.samplers.ancestral import ancestral
from ddm_jax.samplers.autoregressive import autoregressive
from ddm_jax.samplers.blockwise import blockwise
from ddm_jax.samplers.cached import cached
from ddm_jax.samplers.euler import euler, euler_x0
from ddm_jax.samplers.event_driven import event_driven
from ddm_jax.samplers.first_hitting import first_hitting
from ddm_jax.samplers.ordered import ordered
from ddm_jax.samplers.predictor_corrector import predictor_corrector
from ddm_jax.samplers.remasking import remdm
from ddm_jax.samplers.route_denoise import rdm
from ddm_jax.samplers.signature import ABSORBING, NO_TIME, Sampler, SampleSpec, Stats
from ddm_jax.samplers.vector_ancestral import vector_ancestral

UNIFORM = ("uniform", "d3pm_uniform")
SCALE_BY_SIGMA = Option("scale_by_sigma", True)

# the first that fits a network is its default
SAMPLERS = {
    "event_driven": Sampler(event_driven),
    "ancestral": Sampler(
        ancestral, processes=(*ABSORBING, *UNIFORM, "hybrid", "d3pm_gaussian", "d3pm_nearest")
    ),
    "analytic": Sampler(
        analytic,
        trained_options=(SCALE_BY_SIGMA,),
        predicts=("score",),
        processes=("absorbing", "uniform"),
    ),
    "vector_ancestral": Sampler(vector_ancestral, predicts=("vector",)),
    "blockwise": Sampler(
        blockwise,
        trained_options=(Option("block_size", 16),),
        predicts=("blocks",),
        times=NO_TIME,
    ),
    "autoregressive": Sampler(autoregressive, predicts=("next",), times=NO_TIME),
    "cached": Sampler(cached, times=NO_TIME),
    "first_hitting": Sampler(first_hitting, processes=("absorbing",)),
    "ordered": Sampler(ordered, options=(Option("order", "random"),), times=NO_TIME),
    "confidence": Sampler(confidence, times=NO_TIME),
    "margin": Sampler(margin, times=NO_TIME),
    "entropy": Sampler(entropy, options=(Option("gamma", 0.1),), times=NO_TIME),
    "rdm": Sampler(
        rdm,
        options=(
            Option("routing", "uncond"),
            Option("cutoff", "linear"),
            Option("noise_scale", 0.0),
        ),
        processes=(*ABSORBING, *UNIFORM),
        scores=True,
    ),
    "remdm": Sampler(remdm, options=(Option("strategy", "cap"), Option("eta", 0.04))),
    "predictor_corrector": Sampler(
        predictor_corrector,
        options=(Option("kappa", 0.9),),
        processes=(*ABSORBING, *UNIFORM),
    ),
    "euler": Sampler(
        euler,
        trained_options=(SCALE_BY_SIGMA,),
        predicts=("score",),
        processes=("absorbing", "uniform"),
    ),
    "euler_x0": Sampler(euler_x0, processes=("absorbing",)),
}

__all__ = ["SAMPLERS", "SampleSpec", "Sampler", "Stats"]
