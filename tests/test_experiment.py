"""What a config leaves to the objective is filled in, and what does not fit is refused."""

import dataclasses
import inspect

import pytest

from ddm_jax.config import (
    ObjectiveConfig,
    ProcessConfig,
    SamplerConfig,
    ScheduleConfig,
    defaults,
    resolve,
)
from ddm_jax.diffusion.processes import PROCESSES
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.errors import UserError
from ddm_jax.experiment import make_sampler
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.objectives.signature import EXACT
from ddm_jax.samplers import SAMPLERS
from ddm_jax.settle import TIMES, describe, fitting_samplers, settle


def settled(**fields):
    config = defaults()
    for path, value in fields.items():
        section, name = path.split("__")
        config[section][name] = value
    return settle(resolve(config))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_brings_its_own_first_choices(name):
    row, config = OBJECTIVES[name], settled(objective__name=name)
    assert config.process.name == row.processes[0]
    assert config.schedule.name == PROCESSES[row.processes[0]].schedule
    assert config.model.time == next(t for t in row.times if t in TIMES["lm"])
    assert config.sampler.name == fitting_samplers(row, row.processes[0], row.times[0])[0]
    assert config.eval.estimator == (row.estimator or name)
    for word in (name, row.processes[0], config.sampler.name, config.eval.estimator):
        assert word in describe(config)
    assert settle(config) == config


@pytest.mark.parametrize("name", OBJECTIVES)
def test_rows_name_what_there_is(name):
    row = OBJECTIVES[name]
    assert set(row.processes) <= set(PROCESSES)
    assert set(row.times) <= {time for of_kind in TIMES.values() for time in of_kind}
    estimator = OBJECTIVES[row.estimator or name]
    assert estimator.estimates
    assert set(row.processes) <= set(estimator.processes)
    assert set(row.times) <= set(estimator.times)
    assert not set(row.predicts).isdisjoint(estimator.predicts)


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampler_rows_name_what_there_is(name):
    row = SAMPLERS[name]
    assert set(row.processes) <= set(PROCESSES)
    assert set(row.predicts) <= {what for row in OBJECTIVES.values() for what in row.predicts}
    assert set(row.times) <= {time for of_kind in TIMES.values() for time in of_kind}


def test_sampler_must_fit_the_network():
    """A cached sampler reuses what a network said before, which one that reads the time denies."""
    for time in ("none", "adaln"):
        assert ("cached" in fitting_samplers(OBJECTIVES["md4"], "absorbing", time)) == (
            time == "none"
        )
    with pytest.raises(UserError, match=r"'cached' does not fit .*time='adaln': use one of "):
        settled(objective__name="md4", model__time="adaln", sampler__name="cached")


TAKEN = [
    *((f"objective {name}", row.loss, row.options) for name, row in OBJECTIVES.items()),
    *((f"init of {name}", row.init, row.init_options) for name, row in OBJECTIVES.items()),
    *(
        (f"sampler {name}", row.sample, (*row.options, *row.trained_options))
        for name, row in SAMPLERS.items()
    ),
    *((f"process {name}", row.make, row.options) for name, row in PROCESSES.items()),
    *((f"schedule {name}", row.make, row.options) for name, row in SCHEDULES.items()),
]


@pytest.mark.parametrize(
    ("function", "options"), [row[1:] for row in TAKEN], ids=[r[0] for r in TAKEN]
)
def test_rows_name_the_options_of_their_functions_with_the_same_defaults(function, options):
    parameters = inspect.signature(function).parameters.values() if function else ()
    takes = {p.name: p.default for p in parameters if p.default is not p.empty}
    named = {option.name: option.default for option in options}
    if function in [row.make for row in PROCESSES.values()]:
        named.pop("steps", None)  # T is the length of alpha_bar
    assert named == takes


def test_options_are_fields_of_their_sections():
    def fields(section):
        return {f.name for f in dataclasses.fields(section) if f.default is None}

    def named(rows, *of):
        return {
            option.name for row in rows.values() for name in of for option in getattr(row, name)
        }

    assert fields(ObjectiveConfig) == named(OBJECTIVES, "options", "init_options")
    assert fields(ProcessConfig) == named(PROCESSES, "options")
    assert fields(ScheduleConfig) == named(SCHEDULES, "options")
    assert fields(SamplerConfig) == named(SAMPLERS, "options")
    assert fields(ObjectiveConfig) >= named(SAMPLERS, "trained_options")


def test_choices_of_a_row_are_words_of_the_field():
    words = {f.name: f.metadata.get("allowed") for f in dataclasses.fields(ObjectiveConfig)}
    for option in (option for row in OBJECTIVES.values() for option in row.options):
        assert set(option.choices) <= set(words[option.name] or ())


def test_sampler_has_the_options_of_both_sections():
    blockwise = make_sampler(settled(objective__name="bd3lm", objective__block_size=8))
    assert blockwise.keywords == {"block_size": 8}


def test_empty_options_take_the_defaults_of_the_objective():
    assert settled(objective__name="bd3lm").objective.block_size == 4
    assert settled(objective__name="bd3lm", objective__block_size=8).objective.block_size == 8
    assert settled(objective__name="genmd4").objective.power == 1
    assert settled(objective__name="d3pm").process.steps == 1000
    assert settled(objective__name="radd_ao").objective.block_size is None


def test_exact_likelihood_takes_one_draw():
    assert OBJECTIVES["ar"].estimates == EXACT
    assert settled(objective__name="ar", eval__draws=8).eval.draws == 1
    assert settled(objective__name="mdlm", eval__draws=8).eval.draws == 8


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"objective__name": "ar", "model__time": "adaln"}, ("'ar'", "'none' or 'constant'")),
        ({"objective__name": "udlm", "process__name": "absorbing"}, ("'udlm'", "'uniform'")),
        ({"objective__name": "udlm", "sampler__name": "analytic"}, ("'udlm'", "ancestral")),
        ({"objective__name": "udlm", "eval__estimator": "radd_ao"}, ("radd_ao", "'udlm'", "auto")),
        ({"objective__name": "radd_ao", "eval__estimator": "mlm"}, ("'mlm'", "'radd_ao'")),
        ({"objective__name": "md4", "eval__estimator": "radd_ao"}, ("radd_ao", "'md4'", "auto")),
        ({"objective__name": "bd3lm", "eval__estimator": "radd_ao"}, ("radd_ao", "'bd3lm'")),
        ({"objective__name": "mdlm", "eval__estimator": "genmd4"}, ("genmd4", "'mdlm'")),
        (
            {"objective__name": "mdlm", "objective__importance": True, "objective__steps": 4},
            ("importance=True", "steps=4"),
        ),
        (
            {"objective__name": "bd3lm", "objective__clip_low": 0.6, "objective__clip_high": 0.4},
            ("clip_low=0.6", "clip_high=0.4"),
        ),
        ({"objective__name": "genmd4", "objective__power": 0.0}, ("power=0.0", "out of range")),
        ({"objective__name": "mdlm", "schedule__name": "rdm_linear"}, ("rdm_linear", "cosine")),
        ({"objective__name": "bd3lm", "objective__block_size": 3}, ("1024", "block_size=3")),
        ({"objective__name": "mdlm", "objective__ce_weight": 1.0}, ("ce_weight", "importance")),
        ({"objective__name": "d3pm", "process__p_uniform": 0.1}, ("p_uniform", "d3pm_absorbing")),
    ],
)
def test_parts_that_do_not_fit_are_named(fields, parts):
    with pytest.raises(UserError) as error:
        settled(**fields)
    for part in parts:
        assert part in str(error.value)


def test_another_estimator_of_the_same_networks_is_taken():
    config = settled(objective__name="mdlm", eval__estimator="radd_ao")
    assert (config.model.time, config.eval.estimator) == ("constant", "radd_ao")


def test_discrete_processes_take_continuous_schedules_too():
    config = settled(objective__name="d3pm", schedule__name="cosine", schedule__eps=1e-3)
    assert config.schedule.eps == 1e-3
    assert settled(objective__name="d3pm", schedule__name="rdm_sqrt").schedule.eps is None
