"""Samplers, one family a file, one signature (signature.py)."""

from ddm_jax.samplers.ancestral import ancestral
from ddm_jax.samplers.signature import SampleSpec, Stats

SAMPLERS = {"ancestral": ancestral}

__all__ = ["SAMPLERS", "SampleSpec", "Stats"]
