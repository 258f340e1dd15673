"""What every sampler takes and returns.

    sample(apply, params, key, prompt, fixed, process, spec) -> (tokens int32[B, L], Stats)

`prompt` int32[B, L] holds at the positions where `fixed` bool[B, L] is true, anywhere in the
sequence; the rest is drawn.
"""

from dataclasses import dataclass

import jax
from jax import Array


@dataclass(frozen=True)
class SampleSpec:
    """Static settings of a sampler.

    steps: network evaluations where the sampler lets one choose. block_size: tokens that block
    diffusion generates at once.
    """

    steps: int
    block_size: int = 0


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stats:
    """nfe: int32[B], network evaluations that each sequence took."""

    nfe: Array
