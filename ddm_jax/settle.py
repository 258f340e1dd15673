"""Settles a config: fills in every "auto" and checks that its parts fit together."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from ddm_jax.config import Config, ScheduleConfig, lookup
from ddm_jax.data.sources.pair_files import names_pairs
from ddm_jax.data.sources.registry import names_kind
from ddm_jax.diffusion.discrete_schedules import DISCRETE_SCHEDULES
from ddm_jax.diffusion.processes import PROCESSES
from ddm_jax.diffusion.schedules import SCHEDULES, Schedule
from ddm_jax.errors import UserError
from ddm_jax.objectives import OBJECTIVES, gidd, rdm
from ddm_jax.objectives.signature import EXACT, Objective
from ddm_jax.parallel.layouts import LAYOUTS
from ddm_jax.samplers import SAMPLERS

TIMES = {
    "lm": ("none", "adaln", "constant"),
    "prefix": ("none", "adaln", "constant"),
    "encoder_decoder": ("input", "none"),
}


def settle(config: Config) -> Config:
    """Fills in what is left to the objective: every "auto", and the options left empty.

    Raises:
      UserError: an unknown name, an option that does not apply, or parts that do not fit together.
    """
    name = config.objective.name
    objective = lookup(OBJECTIVES, name, "config.objective.name")

    def chosen(field: str, value: str, allowed: tuple[str, ...]) -> str:
        value = allowed[0] if value == "auto" else value
        if value not in allowed:
            raise UserError(
                f"{field}={value!r} does not fit config.objective.name={name!r}: "
                f"use {' or '.join(map(repr, allowed))}, or leave it at 'auto'."
            )
        return value

    kind = config.model.kind
    _check_source(config, objective)
    times = tuple(t for t in objective.times if t in TIMES[kind])
    if not times:
        raise UserError(
            f"config.objective.name={name!r} needs a network with time input {objective.times[0]!r}"
            f", which config.model.kind={kind!r} has not: choose another objective or kind."
        )
    time = chosen("config.model.time", config.model.time, times)
    lookup({**PROCESSES, "auto": None}, config.process.name, "config.process.name")
    process = chosen("config.process.name", config.process.name, objective.processes)
    row = PROCESSES[process]
    schedule = row.schedule if config.schedule.name == "auto" else config.schedule.name
    estimator = config.eval.estimator
    estimator = objective.estimator or name if estimator == "auto" else estimator
    estimates = lookup(OBJECTIVES, estimator, "config.eval.estimator")
    able = fitting_estimators(objective, process, time)
    if estimator not in able:
        raise UserError(
            f"config.eval.estimator={estimator!r} does not estimate the likelihood of "
            f"config.objective.name={name!r}: use one of {', '.join(able)}, or leave it at 'auto'."
        )
    draws = 1 if estimates.estimates == EXACT else config.eval.draws
    lookup({**SAMPLERS, "auto": None}, config.sampler.name, "config.sampler.name")
    fitting = fitting_samplers(objective, process, time)
    sampler = fitting[0] if config.sampler.name == "auto" else config.sampler.name
    if sampler not in fitting:
        raise UserError(
            f"config.sampler.name={sampler!r} does not fit config.objective.name={name!r} with "
            f"config.process.name={process!r} and config.model.time={time!r}: use one of "
            f"{', '.join(fitting)}, or leave it at 'auto'."
        )
    eos = "predicted" if "next" in objective.predicts else "given"
    eos = chosen(
        "config.data.eos", config.data.eos, (eos,) if eos == "predicted" else (eos, "predicted")
    )
    settled = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, eos=eos),
        model=dataclasses.replace(config.model, time=time),
        objective=_with_options(
            config.objective, name, "config.objective", objective.loss, objective.init
        ),
        process=_with_options(config.process, process, "config.process", row.make),
        schedule=_settled_schedule(config.schedule, schedule, row.discrete),
        eval=dataclasses.replace(config.eval, estimator=estimator, draws=draws),
        sampler=_with_options(config.sampler, sampler, "config.sampler", SAMPLERS[sampler].sample),
    )
    _check_options(settled)
    return settled


def fitting_estimators(objective: Objective, process: str, time: str) -> list[str]:
    """The names of the objectives that estimate the likelihood of such networks."""
    return [
        name
        for name, row in OBJECTIVES.items()
        if row.estimates is not None
        and not set(row.predicts).isdisjoint(objective.predicts)
        and process in row.processes
        and time in row.times
    ]


def fitting_samplers(objective: Objective, process: str, time: str) -> list[str]:
    """The names of the samplers for such networks, the one to use by default first."""
    return [
        name
        for name, row in SAMPLERS.items()
        if not set(row.predicts).isdisjoint(objective.predicts)
        and process in row.processes
        and time in row.times
    ]


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
    make = lookup(SCHEDULES, config.name, "config.schedule.name")
    config = _with_options(config, config.name, "config.schedule", make)
    return make(**_chosen(make, config))


def _check_source(config: Config, objective: Objective) -> None:
    """Pairs need a network that reads a source, and the other way round."""
    kind, source = config.model.kind, config.data.source
    if kind == "lm":
        if names_pairs(source):
            raise UserError(
                f"config.data.source={source!r} is parallel text, which config.model.kind='lm' "
                "cannot read: set the kind to 'encoder_decoder' or 'prefix'."
            )
        return
    if names_kind(source) and not names_pairs(source):
        raise UserError(
            f"config.model.kind={kind!r} needs a source for every target, which config.data.source="
            f"{source!r} has not: give pairs:NAME (docs/data.md), or set the kind to 'lm'."
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


def _check_options(config: Config) -> None:
    """What options must be, given others."""
    model, length, options = config.model, config.data.length, config.objective
    if model.shift:
        _check_shift(config)
    if model.positions == "learned" and length + model.shift > model.max_length:
        start = ", and its start," if model.shift else ""
        raise UserError(
            f"config.data.length={length}{start} is longer than config.model.max_length="
            f"{model.max_length}, the number of learned positions: shorten the one or raise the "
            "other."
        )
    if options.block_size and length % options.block_size:
        raise UserError(
            f"config.data.length={length} is not divisible by "
            f"config.objective.block_size={options.block_size}: choose a divisor."
        )
    weightings = {"gidd": gidd.WEIGHTINGS, "rdm_absorb": rdm.WEIGHTINGS}
    weightings["rdm_multinomial"] = weightings["rdm_absorb"]
    if options.weighting and options.weighting not in weightings[options.name]:
        raise UserError(
            f"config.objective.weighting={options.weighting!r} does not fit config.objective.name="
            f"{options.name!r}: use one of {', '.join(weightings[options.name])}."
        )
    if options.importance and options.steps:
        raise UserError(
            "config.objective.importance=True does not go with config.objective.steps="
            f"{options.steps}: set config.objective.steps=0, or leave importance empty."
        )
    if options.clip_low is not None and not options.clip_low < options.clip_high:
        raise UserError(
            f"config.objective.clip_low={options.clip_low} is not below config.objective.clip_high="
            f"{options.clip_high}: give an interval of mask ratios within 0 and 1."
        )
    sampler = config.sampler
    if sampler.name == "autoregressive" and sampler.lengths > 1:
        raise UserError(
            f"config.sampler.lengths={sampler.lengths} does not go with config.sampler.name="
            "'autoregressive', whose targets end where they will: leave it at 1."
        )
    several = sampler.lengths * sampler.candidates > 1
    if several and sampler.selection == "score" and not SAMPLERS[sampler.name].scores:
        scoring = [name for name, row in SAMPLERS.items() if row.scores]
        raise UserError(
            f"config.sampler.selection='score' needs a sampler that scores, {', '.join(scoring)}, "
            f"not {sampler.name!r}: use 'mbr', or one length and one candidate."
        )


def _check_shift(config: Config) -> None:
    """What a head that is read from the left cannot go with."""
    name, layout = config.objective.name, config.layout.name
    if not {"next", "blocks"}.isdisjoint(OBJECTIVES[name].predicts):
        raise UserError(
            f"config.model.shift=True does not go with config.objective.name={name!r}, which lays "
            "out its own input: leave it at False, or choose another objective."
        )
    if layout in LAYOUTS and LAYOUTS[layout].positions:
        raise UserError(
            f"config.model.shift=True does not go with config.layout.name={layout!r}, which splits "
            "the positions, one more than the tokens: choose another layout."
        )


def _settled_schedule(config: ScheduleConfig, name: str, discrete: bool) -> ScheduleConfig:
    table = {**SCHEDULES, **DISCRETE_SCHEDULES} if discrete else SCHEDULES
    make = lookup(table, name, "config.schedule.name")
    if name in SCHEDULES:
        config = _with_options(config, name, "config.schedule", make)
        make_schedule(config)  # raises where a value is bad
        return config
    return _with_options(config, name, "config.schedule")


def _with_options(section: Any, name: str, where: str, *functions: Callable | None) -> Any:
    """The section of this name, with the defaults of the functions for options that are empty."""
    known = {o: x for function in functions if function for o, x in _defaults(function).items()}
    fields = [f.name for f in dataclasses.fields(section) if f.default is None]
    values = {name: getattr(section, name) for name in fields}
    for option, value in values.items():
        if value is not None and option not in known:
            has = f"which has {', '.join(known)}" if known else "which has no options"
            raise UserError(
                f"{where}.{option} does not apply to {where}.name={name!r}, {has}: leave it empty."
            )
    filled = {o: known[o] for o in known if o in values and values[o] is None}
    return dataclasses.replace(section, name=name, **filled)


def _chosen(function: Callable, *sections: Any) -> dict[str, Any]:
    """The options of a function that config sections set, the first one that has a field."""
    fields = {f.name: getattr(s, f.name) for s in reversed(sections) for f in dataclasses.fields(s)}
    values = {name: fields[name] for name in _defaults(function)}
    return {name: value for name, value in values.items() if value is not None}


def _defaults(function: Callable) -> dict[str, Any]:
    """The arguments of a function that have defaults, and these: its options."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
