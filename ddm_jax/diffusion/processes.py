"""The table of forward processes: how each is made, and from which kind of schedule."""

from collections.abc import Callable
from dataclasses import dataclass

from ddm_jax.diffusion import d3pm, d3pm_gaussian, d3pm_nearest
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.hybrid import Hybrid
from ddm_jax.diffusion.process import Process
from ddm_jax.diffusion.uniform import Uniform


@dataclass(frozen=True)
class ProcessEntry:
    """make(schedule, vocab_size, **options) -> process, with corrupt, condition, prior, reverse.

    schedule: the default one. discrete: whether `make` takes alpha_bar, float64[steps + 1]
    (discrete_schedules.py), or a continuous Schedule. The arguments of `make` that have defaults
    are its options, fields of config.process.
    """

    make: Callable[..., Process]
    schedule: str = "log_linear"
    discrete: bool = False


PROCESSES = {
    "absorbing": ProcessEntry(Absorbing),  # the mask id is the size of the vocabulary
    "uniform": ProcessEntry(Uniform),
    "hybrid": ProcessEntry(Hybrid),
    "d3pm_absorbing": ProcessEntry(d3pm.absorbing, "d3pm_mutual_information", discrete=True),
    "d3pm_uniform": ProcessEntry(d3pm.uniform, "d3pm_cosine", discrete=True),
    "d3pm_gaussian": ProcessEntry(d3pm_gaussian.gaussian, "d3pm_linear", discrete=True),
    "d3pm_nearest": ProcessEntry(d3pm_nearest.nearest, "d3pm_mutual_information", discrete=True),
}
