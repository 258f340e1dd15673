"""Settles a config: fills in every "auto" and empty option, and checks that its parts fit together.

Whether a config is valid is decided here, once its fields have the right types and ranges
(config.resolve). Only what depends on the data and the devices is checked later (experiment.build).
Afterwards every name is a row of its table, and every option that applies has a value.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from ddm_jax.config import (
    Config,
    ObjectiveConfig,
    ProcessConfig,
    SamplerConfig,
    ScheduleConfig,
    lookup,
)
from ddm_jax.config_fields import Option
from ddm_jax.data.sources.pair_files import is_pair_source
from ddm_jax.data.sources.registry import is_source
from ddm_jax.diffusion.discrete_schedules import DISCRETE_SCHEDULES
from ddm_jax.diffusion.processes import PROCESSES
from ddm_jax.diffusion.schedules import SCHEDULES, Schedule
from ddm_jax.errors import UserError
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.objectives.signature import EXACT, Objective
from ddm_jax.parallel.layouts import LAYOUTS
from ddm_jax.samplers import SAMPLERS

# the time inputs that each kind of network has
TIMES = {
    "lm": ("none", "adaln", "constant"),
    "prefix": ("none", "adaln", "constant"),
    "encoder_decoder": ("input", "none"),
}

Section = TypeVar("Section", ProcessConfig, ScheduleConfig, ObjectiveConfig, SamplerConfig)


def settle(config: Config) -> Config:
    """Fills in what is left to the objective: every "auto", and the options left empty.

    Args:
      config: as `config.resolve` gives it, or settled before (which changes nothing).

    Raises:
      UserError: an unknown name, an option that does not apply, or parts that do not fit together.
    """
    name = config.objective.name
    objective = lookup(OBJECTIVES, name, "config.objective.name")
    _check_source(config, objective)
    time = _choose_time(config, objective)
    process = _choose_process(config, objective)
    entry = PROCESSES[process]
    estimator = _choose_estimator(config, objective, process, time)
    exact = OBJECTIVES[estimator].estimates == EXACT
    sampler = _choose_sampler(config, objective, process, time)
    settled = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, eos=_choose_eos(config, objective)),
        model=dataclasses.replace(config.model, time=time),
        objective=_fill_options(
            config.objective,
            name,
            (*objective.options, *objective.init_options),
            "config.objective",
        ),
        process=_fill_options(config.process, process, entry.options, "config.process"),
        schedule=_fill_schedule(config.schedule, entry.schedule, entry.discrete),
        eval=dataclasses.replace(
            config.eval, estimator=estimator, draws=1 if exact else config.eval.draws
        ),
        sampler=_fill_options(config.sampler, sampler, SAMPLERS[sampler].options, "config.sampler"),
    )
    _check_positions(settled)
    _check_objective(settled.objective, settled.data.length)
    _check_sampler(settled.sampler)
    return settled


def fitting_estimators(objective: Objective, process: str, time: str) -> list[str]:
    """The names of the objectives that estimate the likelihood of an objective's networks.

    Args:
      objective: with which the networks are trained.
      process: config.process.name.
      time: config.model.time.
    """
    return [
        name
        for name, row in OBJECTIVES.items()
        if row.estimates is not None
        and not set(row.predicts).isdisjoint(objective.predicts)
        and process in row.processes
        and time in row.times
    ]


def fitting_samplers(objective: Objective, process: str, time: str) -> list[str]:
    """The names of the samplers for an objective's networks, the default first.

    Args:
      objective: with which the networks are trained.
      process: config.process.name.
      time: config.model.time.
    """
    return [
        name
        for name, row in SAMPLERS.items()
        if not set(row.predicts).isdisjoint(objective.predicts)
        and process in row.processes
        and time in row.times
    ]


def option_values(options: Sequence[Option], section: Any) -> dict[str, Any]:
    """The values that a settled section of a config gives to options: name -> value.

    An option that is empty in this section is left out, which happens where the section's own row
    does not have it: the function that takes it has the same default.
    """
    values = {option.name: getattr(section, option.name) for option in options}
    return {name: value for name, value in values.items() if value is not None}


def describe(config: Config) -> str:
    """One line on what a settled config trains."""
    inputs = {"none": "no", "adaln": "adaLN", "constant": "constant adaLN, no", "input": "added"}
    kinds = {"lm": "network", "encoder_decoder": "encoder and decoder", "prefix": "prefix network"}
    network = f"{kinds[config.model.kind]} with {inputs[config.model.time]} time input"
    network += ", read from the left" if config.model.shift else ""
    return (
        f"Objective {config.objective.name}: {config.process.name} process, "
        f"{config.schedule.name} schedule, {network}, {config.sampler.name} sampler, "
        f"likelihood by {config.eval.estimator}"
    )


def make_schedule(config: ScheduleConfig) -> Schedule:
    """The continuous schedule of a config section.

    Raises:
      UserError: an unknown name, an option that this schedule does not have, or a bad value.
    """
    row = lookup(SCHEDULES, config.name, "config.schedule.name")
    config = _fill_options(config, config.name, row.options, "config.schedule")
    return row.make(**option_values(row.options, config))


def _choose_time(config: Config, objective: Objective) -> str:
    """The network's time input."""
    kind = config.model.kind
    times = tuple(t for t in objective.times if t in TIMES[kind])
    if not times:
        raise UserError(
            f"config.objective.name={config.objective.name!r} needs a network with time input "
            f"{objective.times[0]!r}, which config.model.kind={kind!r} does not have: choose "
            "another objective or kind."
        )
    return _one_of("config.model.time", config.model.time, times, config.objective.name)


def _choose_process(config: Config, objective: Objective) -> str:
    """The forward process."""
    where = "config.process.name"
    lookup({**PROCESSES, "auto": None}, config.process.name, where)
    return _one_of(where, config.process.name, objective.processes, config.objective.name)


def _choose_eos(config: Config, objective: Objective) -> str:
    """Whether the EOS of a target is given or predicted; a causal network always predicts it."""
    allowed = ("predicted",) if "next" in objective.predicts else ("given", "predicted")
    return _one_of("config.data.eos", config.data.eos, allowed, config.objective.name)


def _one_of(where: str, value: str, allowed: tuple[str, ...], objective: str) -> str:
    """A word that an objective allows; "auto" is the first."""
    value = allowed[0] if value == "auto" else value
    if value not in allowed:
        raise UserError(
            f"{where}={value!r} does not fit config.objective.name={objective!r}: "
            f"use {' or '.join(map(repr, allowed))}, or leave it at 'auto'."
        )
    return value


def _choose_estimator(config: Config, objective: Objective, process: str, time: str) -> str:
    """The objective that estimates the likelihood."""
    name, estimator = config.objective.name, config.eval.estimator
    estimator = (objective.estimator or name) if estimator == "auto" else estimator
    lookup(OBJECTIVES, estimator, "config.eval.estimator")
    fitting = fitting_estimators(objective, process, time)
    if estimator not in fitting:
        raise UserError(
            f"config.eval.estimator={estimator!r} does not estimate the likelihood of "
            f"config.objective.name={name!r}: use one of {', '.join(fitting)}, or leave it at "
            "'auto'."
        )
    return estimator


def _choose_sampler(config: Config, objective: Objective, process: str, time: str) -> str:
    """The sampler."""
    lookup({**SAMPLERS, "auto": None}, config.sampler.name, "config.sampler.name")
    fitting = fitting_samplers(objective, process, time)
    sampler = fitting[0] if config.sampler.name == "auto" else config.sampler.name
    if sampler not in fitting:
        raise UserError(
            f"config.sampler.name={sampler!r} does not fit config.objective.name="
            f"{config.objective.name!r} with config.process.name={process!r} and "
            f"config.model.time={time!r}: use one of {', '.join(fitting)}, or leave it at 'auto'."
        )
    return sampler


def _fill_schedule(config: ScheduleConfig, default: str, discrete: bool) -> ScheduleConfig:
    """The section of the noise schedule; a process in T steps has discrete ones to choose, too."""
    name = default if config.name == "auto" else config.name
    names = {**SCHEDULES, **DISCRETE_SCHEDULES} if discrete else SCHEDULES
    lookup(names, name, "config.schedule.name")
    if name not in SCHEDULES:
        return _fill_options(config, name, (), "config.schedule")
    config = _fill_options(config, name, SCHEDULES[name].options, "config.schedule")
    make_schedule(config)  # raises where a value is bad
    return config


def _fill_options(section: Section, name: str, options: Sequence[Option], where: str) -> Section:
    """The section with this name, and with the defaults of the options that are empty.

    Args:
      section: of the config, whose fields that are None by default are options.
      name: of the row.
      options: of the row.
      where: the section's name, for messages.

    Raises:
      UserError: an option that the row does not have is set, or has a word that the row excludes.
    """
    known = {option.name: option for option in options}
    empty: dict[str, Any] = {}
    for f in dataclasses.fields(section):
        value, option = getattr(section, f.name), known.get(f.name)
        if f.default is not None:
            continue
        if option is None:
            if value is not None:
                has = f"which has {', '.join(known)}" if known else "which has no options"
                raise UserError(
                    f"{where}.{f.name} does not apply to {where}.name={name!r}, {has}: leave it "
                    "empty."
                )
        elif value is None:
            empty[f.name] = option.default
        elif option.choices and value not in option.choices:
            raise UserError(
                f"{where}.{f.name}={value!r} does not fit {where}.name={name!r}: use one of "
                f"{', '.join(option.choices)}."
            )
    return dataclasses.replace(section, name=name, **empty)


def _check_source(config: Config, objective: Objective) -> None:
    """Pairs need a network that reads a source, and such a network needs pairs."""
    kind, source = config.model.kind, config.data.source
    if kind == "lm":
        if is_pair_source(source):
            raise UserError(
                f"config.data.source={source!r} is parallel text, which config.model.kind='lm' "
                "cannot read: set the kind to 'encoder_decoder' or 'prefix'."
            )
        return
    if is_source(source) and not is_pair_source(source):
        raise UserError(
            f"config.model.kind={kind!r} needs a source for every target, which config.data.source="
            f"{source!r} does not have: give pairs:NAME (docs/data.md), or set the kind to 'lm'."
        )
    if "blocks" in objective.predicts:
        raise UserError(
            f"config.objective.name={config.objective.name!r} does not fit config.model.kind="
            f"{kind!r}: set it to 'lm', or choose another objective."
        )
    longest = max(config.data.length, config.data.source_length)
    if longest > config.model.max_length:
        raise UserError(
            f"config.model.max_length={config.model.max_length} is less than config.data.length="
            f"{config.data.length} or config.data.source_length={config.data.source_length}: raise "
            f"it to {longest}."
        )


def _check_positions(config: Config) -> None:
    """The network has room for the tokens, and reads them as the objective and the layout need."""
    model, length = config.model, config.data.length
    if model.shift:
        _check_shift(config)
    if model.positions == "learned" and length + model.shift > model.max_length:
        start = ", and its start," if model.shift else ""
        raise UserError(
            f"config.data.length={length}{start} is longer than config.model.max_length="
            f"{model.max_length}, the number of learned positions: shorten the text or raise the "
            "maximum."
        )


def _check_shift(config: Config) -> None:
    """Objectives and layouts with which config.model.shift cannot be combined."""
    name, layout = config.objective.name, config.layout.name
    if not {"next", "blocks"}.isdisjoint(OBJECTIVES[name].predicts):
        raise UserError(
            f"config.model.shift=True does not go with config.objective.name={name!r}, which lays "
            "out its own input: leave it at False, or choose another objective."
        )
    if layout in LAYOUTS and LAYOUTS[layout].position_axis:
        raise UserError(
            f"config.model.shift=True does not go with config.layout.name={layout!r}, which splits "
            "the positions, one more than the tokens: choose another layout."
        )


def _check_objective(options: ObjectiveConfig, length: int) -> None:
    """Options of an objective that depend on each other, or on the length of a sequence."""
    if options.block_size and length % options.block_size:
        raise UserError(
            f"config.data.length={length} is not divisible by "
            f"config.objective.block_size={options.block_size}: choose a divisor."
        )
    if options.importance and options.steps:
        raise UserError(
            "config.objective.importance=True does not go with config.objective.steps="
            f"{options.steps}: set config.objective.steps=0, or leave importance empty."
        )
    low, high = options.clip_low, options.clip_high
    if low is not None and high is not None and not low < high:
        raise UserError(
            f"config.objective.clip_low={low} is not below config.objective.clip_high={high}: give "
            "an interval of mask ratios within 0 and 1."
        )


def _check_sampler(sampler: SamplerConfig) -> None:
    """Several candidates of a target need a sampler that can choose among them."""
    if sampler.name == "autoregressive" and sampler.lengths > 1:
        raise UserError(
            f"config.sampler.lengths={sampler.lengths} does not go with config.sampler.name="
            "'autoregressive', which draws the end of a target itself: leave it at 1."
        )
    several = sampler.lengths * sampler.candidates > 1
    if several and sampler.selection == "score" and not SAMPLERS[sampler.name].scores:
        scoring = [name for name, row in SAMPLERS.items() if row.scores]
        raise UserError(
            f"config.sampler.selection='score' needs a sampler that scores, {', '.join(scoring)}, "
            f"not {sampler.name!r}: use 'mbr', or one length and one candidate."
        )
