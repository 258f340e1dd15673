"""From a config to the parts of a run; every command line starts here."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax

from ddm_jax.config import Config, ScheduleConfig, lookup
from ddm_jax.data.opening import open_or_prepare
from ddm_jax.data.prepared import PreparedSet
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES, Schedule
from ddm_jax.errors import UserError
from ddm_jax.models.network import Network, make_network
from ddm_jax.objectives import OBJECTIVES, Objective
from ddm_jax.parallel.layouts import LAYOUTS, Layout
from ddm_jax.samplers import SAMPLERS

PROCESSES = {"absorbing": Absorbing}


@dataclass(frozen=True)
class Experiment:
    """What a config describes. `estimator` is the objective that bounds the likelihood."""

    config: Config
    data: PreparedSet
    process: Any
    objective: Objective
    estimator: Objective
    sampler: Any
    network: Network
    layout: Layout


def build(config: Config) -> Experiment:
    """Looks every name up, opens or prepares the data, and makes the network (no arrays yet).

    Raises:
      UserError: an unknown name, parts that do not fit each other, or data that is not there.
    """
    # all that can be wrong in a config is found before data is prepared, which may take minutes
    schedule = make_schedule(config.schedule)
    process = lookup(PROCESSES, config.process.name, "config.process.name")
    objective = lookup(OBJECTIVES, config.objective.name, "config.objective.name")
    estimator = lookup(OBJECTIVES, config.eval.estimator, "config.eval.estimator")
    sampler = lookup(SAMPLERS, config.sampler.name, "config.sampler.name")
    layout = lookup(LAYOUTS, config.layout.name, "config.layout.name")(jax.devices())
    if config.model.time != "none" and not objective.uses_time:
        raise UserError(
            f"config.model.time={config.model.time!r} does not fit config.objective.name="
            f"{config.objective.name!r}, whose network has no time input: use 'none'."
        )
    layout.check_batch(
        config.train.batch_size // config.train.microbatches,
        "config.train.batch_size / config.train.microbatches",
    )
    layout.check_batch(config.eval.batch_size, "config.eval.batch_size")
    data = open_or_prepare(config.data)
    data.blocks("validation")  # raises now, rather than at the first validation, if there are none
    vocab_size = data.tokenizer.vocab_size
    return Experiment(
        config=config,
        data=data,
        process=process(schedule, mask_id=vocab_size),
        objective=objective,
        estimator=estimator,
        sampler=sampler,
        network=make_network(config.model, vocab_size),
        layout=layout,
    )


def make_schedule(config: ScheduleConfig) -> Schedule:
    """The schedule of a config section.

    Raises:
      UserError: an unknown name, an option that this schedule does not have, or a bad value.
    """
    make = lookup(SCHEDULES, config.name, "config.schedule.name")
    options = {k: v for k, v in dataclasses.asdict(config).items() if k != "name" and v is not None}
    known = make.__annotations__
    for option in options:
        if option not in known:
            has = ", ".join(k for k in known if k != "return")
            raise UserError(
                f"config.schedule.{option} does not apply to config.schedule.name={config.name!r}, "
                f"which has {has}: leave it empty."
            )
    return make(**options)
