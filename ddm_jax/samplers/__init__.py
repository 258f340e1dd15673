"""Samplers, one family a file, one signature (signature.py)."""

from ddm_jax.samplers.analytic import analytic
from ddm_jax.samplers.ancestral import ancestral
from ddm_jax.samplers.autoregressive import autoregressive
from ddm_jax.samplers.blockwise import blockwise
from ddm_jax.samplers.cached import cached
from ddm_jax.samplers.event_driven import event_driven
from ddm_jax.samplers.signature import ABSORBING, NO_TIME, Sampler, SampleSpec, Stats
from ddm_jax.samplers.vector_ancestral import vector_ancestral

_ANY_PROCESS = (
    *ABSORBING,
    "uniform",
    "hybrid",
    "d3pm_uniform",
    "d3pm_gaussian",
    "d3pm_nearest",
)

# the first that fits is the default
SAMPLERS = {
    "event_driven": Sampler(event_driven),
    "ancestral": Sampler(ancestral, processes=_ANY_PROCESS),
    "cached": Sampler(cached, times=NO_TIME),
    "analytic": Sampler(analytic, predicts=("score",), processes=("uniform",)),
    "vector_ancestral": Sampler(vector_ancestral, predicts=("vector",)),
    "blockwise": Sampler(blockwise, predicts=("blocks",), times=NO_TIME),
    "autoregressive": Sampler(autoregressive, predicts=("next",), times=NO_TIME),
}

__all__ = ["SAMPLERS", "SampleSpec", "Sampler", "Stats"]
