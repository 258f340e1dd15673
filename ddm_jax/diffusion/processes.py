"""The table of forward processes: how each is made, and from which kind of schedule."""

from collections.abc import Callable
from dataclasses import dataclass

from ddm_jax.config_fields import Option
from ddm_jax.diffusion import d3pm, d3pm_gaussian, d3pm_nearest
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.hybrid import Hybrid
from ddm_jax.diffusion.process import Process
from ddm_jax.diffusion.uniform import Uniform


@dataclass(frozen=True)
class ProcessEntry:
    """One row of the table of forward processes.

    Attributes:
      make: `make(schedule, vocab_size, **options)` builds the process.
      schedule: the name of the default schedule.
      discrete: whether time has T steps, T = config.process.steps. Then the schedule that `make`
        takes is alpha_bar, float64[T + 1] (discrete_schedules.py), and T is not passed again;
        otherwise it is a continuous Schedule.
      options: the fields of config.process that apply, with their defaults.
    """

    make: Callable[..., Process]
    schedule: str = "log_linear"
    discrete: bool = False
    options: tuple[Option, ...] = ()


STEPS = Option("steps", 1000)  # T


PROCESSES = {
    "absorbing": ProcessEntry(Absorbing),  # the mask id is the size of the vocabulary
    "uniform": ProcessEntry(Uniform),
    "hybrid": ProcessEntry(Hybrid, options=(Option("p_uniform", 0.2),)),
    "d3pm_absorbing": ProcessEntry(
        d3pm.absorbing, "d3pm_mutual_information", discrete=True, options=(STEPS,)
    ),
    "d3pm_uniform": ProcessEntry(d3pm.uniform, "d3pm_cosine", discrete=True, options=(STEPS,)),
    "d3pm_gaussian": ProcessEntry(
        d3pm_gaussian.gaussian, "d3pm_linear", discrete=True, options=(STEPS,)
    ),
    "d3pm_nearest": ProcessEntry(
        d3pm_nearest.nearest,
        "d3pm_mutual_information",
        discrete=True,
        options=(STEPS, Option("neighbours", 10), Option("embedding", "")),
    ),
}
