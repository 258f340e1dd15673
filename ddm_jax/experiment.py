"""From a config to the parts of a run: data, process, objective, network, sampler and layout."""

import dataclasses
import functools
from dataclasses import dataclass

import jax
import numpy as np

from ddm_jax.config import Config, ProcessConfig, ScheduleConfig
from ddm_jax.data.open import open_or_prepare
from ddm_jax.data.sets.kinds import PreparedSet
from ddm_jax.data.sets.pairs import PreparedPairs
from ddm_jax.diffusion.discrete_schedules import DISCRETE_SCHEDULES
from ddm_jax.diffusion.process import Process
from ddm_jax.diffusion.processes import PROCESSES
from ddm_jax.diffusion.schedules import grid
from ddm_jax.errors import UserError
from ddm_jax.models.layout_hooks import SINGLE_DEVICE, LayoutHooks
from ddm_jax.models.network import Network, make_network, with_parameters
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.objectives.signature import Objective
from ddm_jax.parallel.layout_hooks import hooks_of
from ddm_jax.parallel.layouts import Layout, make_layout
from ddm_jax.samplers import SAMPLERS
from ddm_jax.samplers.signature import Sample
from ddm_jax.settle import make_schedule, option_values, settle


@dataclass(frozen=True)
class Experiment:
    """The parts of a run, made from its config.

    Attributes:
      config: settled.
      data: the prepared text or pairs.
      process: the forward process.
      objective: the row of config.objective, its loss with the config's options.
      estimator: the row of config.eval.estimator, which bounds the likelihood, likewise.
      sampler: that of config.sampler, with its options.
      network: pure functions; no parameters yet.
      layout: how arrays are spread over the devices.
    """

    config: Config
    data: PreparedSet
    process: Process
    objective: Objective
    estimator: Objective
    sampler: Sample
    network: Network
    layout: Layout


def build(config: Config) -> Experiment:
    """Looks every name up, opens or prepares the data, and makes the network (no arrays yet).

    Raises:
      UserError: an unknown name, parts that do not fit each other, or missing data.
    """
    # every error of the config is found before data is prepared, which may take minutes
    config = settle(config)
    layout = make_layout(config.layout, jax.devices())
    layout.check_batch(
        config.train.batch_size // config.train.microbatches,
        "config.train.batch_size / config.train.microbatches",
    )
    layout.check_batch(config.eval.batch_size, "config.eval.batch_size")
    data = open_or_prepare(config.data)
    if isinstance(data, PreparedPairs) != (config.model.kind != "lm"):
        raise UserError(
            f"config.data.source={config.data.source!r} does not fit config.model.kind="
            f"{config.model.kind!r}: 'lm' reads prepared text, the other kinds prepared pairs."
        )
    # raises now, and not at the first validation, if there is no held-out text
    data.records("validation")
    process, objective, network = make_parts(config, data.tokenizer.vocab_size, hooks_of(layout))
    # raises if the layout cannot split a parameter
    layout.param_shardings(jax.eval_shape(network.init, jax.random.key(0)))
    return Experiment(
        config=config,
        data=data,
        process=process,
        objective=objective,
        estimator=with_options(OBJECTIVES[config.eval.estimator], config),
        sampler=make_sampler(config),
        network=network,
        layout=layout,
    )


def make_parts(
    config: Config, vocab_size: int, hooks: LayoutHooks = SINGLE_DEVICE
) -> tuple[Process, Objective, Network]:
    """The forward process, the objective and the network of a settled config (no arrays yet).

    Args:
      config: settled.
      vocab_size: number of tokens V, without the mask.
      hooks: what the layout that the network runs under asks of it.

    Raises:
      UserError: a bad value, or one that does not fit the vocabulary.
    """
    process = make_process(config.process, config.schedule, vocab_size)
    objective = with_options(OBJECTIVES[config.objective.name], config)
    network = make_network(config.model, vocab_size, hooks)
    if objective.init:
        options = option_values(objective.init_options, config.objective)
        init = functools.partial(objective.init, process=process, **options)
        network = with_parameters(network, "objective", init)
    return process, objective, network


def with_options(objective: Objective, config: Config) -> Objective:
    """The objective whose loss has the options of a settled config."""
    options = option_values(objective.options, config.objective)
    return dataclasses.replace(objective, loss=functools.partial(objective.loss, **options))


def make_sampler(config: Config) -> Sample:
    """The sampler of a settled config, with its options (samplers/signature.py)."""
    row = SAMPLERS[config.sampler.name]
    return functools.partial(
        row.sample,
        **option_values(row.options, config.sampler),
        **option_values(row.trained_options, config.objective),
    )


def make_process(config: ProcessConfig, schedule: ScheduleConfig, vocab_size: int) -> Process:
    """The forward process of settled config sections.

    Raises:
      UserError: a bad value.
    """
    row = PROCESSES[config.name]
    options = option_values(row.options, config)
    if row.discrete:
        alpha_bar = make_alpha_bar(schedule, options.pop("steps"))
        return row.make(alpha_bar, vocab_size, **options)
    return row.make(make_schedule(schedule), vocab_size, **options)


def make_alpha_bar(config: ScheduleConfig, steps: int) -> np.ndarray:
    """alpha_bar of a discrete schedule, or of a continuous one at t/T: float64[steps + 1].

    Raises:
      UserError: as `make_schedule`.
    """
    if config.name in DISCRETE_SCHEDULES:
        return DISCRETE_SCHEDULES[config.name](steps)
    return grid(make_schedule(config), steps)
