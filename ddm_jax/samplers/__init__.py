"""Samplers, one family a file, one signature (signature.py)."""

from ddm_jax.samplers.analytic import analytic
from ddm_jax.samplers.ancestral import ancestral
from ddm_jax.samplers.autoregressive import autoregressive
from ddm_jax.samplers.blockwise import blockwise
from ddm_jax.samplers.signature import SampleSpec, Stats
from ddm_jax.samplers.vector_ancestral import vector_ancestral

SAMPLERS = {
    "analytic": analytic,
    "ancestral": ancestral,
    "autoregressive": autoregressive,
    "blockwise": blockwise,
    "vector_ancestral": vector_ancestral,
}

__all__ = ["SAMPLERS", "SampleSpec", "Stats"]
