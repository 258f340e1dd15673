"""Ancestral sampling with a schedule for each token (Shi et al. 2024, arXiv:2406.04329, section 6).

A mask turns into token v between t and s < t with probability p_v (1 - (s/t)^{w_v}): tokens of
large w come first.
"""

from jax import Array

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.vector_absorbing import with_learned_powers
from ddm_jax.models.network import Apply, Params
from ddm_jax.samplers.ancestral import ancestral
from ddm_jax.samplers.signature import SampleSpec, Stats


def vector_ancestral(
    apply: Apply,
    params: Params,
    key: Array,
    prompt: Array,
    fixed: Array,
    process: Absorbing,
    spec: SampleSpec,
) -> tuple[Array, Stats]:
    """Samples in spec.steps equal steps of time, with the w that GenMD4 has learned.

    Args and Returns are those of `ancestral`; params["objective"] holds what was learned.
    """
    vector = with_learned_powers(process, params["objective"])
    return ancestral(apply, params, key, prompt, fixed, vector, spec)
