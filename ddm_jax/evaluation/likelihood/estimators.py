"""Estimators of the likelihood of a run: the objectives that its network can be evaluated with."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from ddm_jax.config import Config
from ddm_jax.errors import UserError
from ddm_jax.experiment import with_options
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.objectives.signature import EXACT, Loss
from ddm_jax.settle import fitting_estimators, option_values

DRAWS = 32
BEST = "radd_ao"  # of those that estimate the same bound (benchmarks/estimators.py)
STEPPED = ("mdlm", "md4")  # they have a bound in T steps, too

_TIME = "t uniform in [0.001, 1]"
_STEPS = "t uniform on the grid of {} steps"
# what is drawn for each corruption, where it is not _TIME
_LEVELS = {
    "radd_lambda_dce": "mask ratio lambda uniform in (0, 1)",
    "radd_ao": "number of masks k uniform on 1..n",
    "md4": "t uniform in (0, 1)",
    "mlm_pseudo": "one masked position, uniform",
    "ar": "none",
    "bd3lm": "t uniform in [0.001, 1], for every block",
    "gidd": "t = sin^2(pi u / 2) in (0, 1), weighted",
}


@dataclasses.dataclass(frozen=True)
class Estimator:
    """An objective as an estimator.

    Attributes:
      name: of the objective.
      loss: of the objective, with its options bound.
      estimates: what its bound is (Objective.estimates).
      draws: corruptions of a sequence, each of which is a network evaluation.
      groups: independent groups that the draws come in, of equal size.
      levels: the distribution of the noise levels, in words.
      options: of the loss.
    """

    name: str
    loss: Loss
    estimates: str
    draws: int
    groups: int
    levels: str
    options: dict[str, Any]


def fitting(config: Config) -> list[str]:
    """The names of the objectives that estimate the likelihood of a settled config's networks."""
    objective = OBJECTIVES[config.objective.name]
    return fitting_estimators(objective, config.process.name, config.model.time)


def choose(
    config: Config, name: str = "auto", draws: int = DRAWS, time_steps: int | None = None
) -> Estimator:
    """The estimator of a name for the networks of a settled config; "auto" is the best one.

    The best one is the run's own, or BEST where it fits and has the same expectation with less
    noise.

    Args:
      config: of the run.
      name: one of `fitting`, or "auto".
      draws: corruptions of a sequence: 1, or an even number, which comes in two groups from which
        the error of the draws is estimated. An exact estimator takes 1.
      time_steps: T of a bound in T steps, 0 for continuous time; None: as in training.

    Raises:
      UserError: the estimator does not fit, with those that do; draws is neither 1 nor a positive
        even number; or the estimator has no steps to choose.
    """
    possible = fitting(config)
    name = _best(config, possible, time_steps) if name == "auto" else name
    if name not in possible:
        why = "is unknown" if name not in OBJECTIVES else "does not fit this run"
        raise UserError(
            f"--estimator={name} {why} (config.objective.name={config.objective.name!r}, "
            f"config.process.name={config.process.name!r}, config.model.time="
            f"{config.model.time!r}): use one of {', '.join(possible)}."
        )
    if draws != 1 and (draws < 1 or draws % 2):
        raise UserError(
            f"--draws={draws} is neither 1 nor a positive even number: give one of these; the "
            "error is estimated from two halves."
        )
    if time_steps is not None:
        config = _with_steps(config, name, possible, time_steps)
    objective = with_options(OBJECTIVES[name], config)
    assert objective.estimates is not None, "see fitting_estimators"
    draws = 1 if objective.estimates == EXACT else draws
    options = option_values(objective.options, config.objective)
    return Estimator(
        name=name,
        loss=objective.loss,
        estimates=objective.estimates,
        draws=draws,
        groups=2 if draws > 1 else 1,
        levels=_levels(name, options, config),
        options=options,
    )


def _best(config: Config, possible: Sequence[str], time_steps: int | None) -> str:
    own = config.eval.estimator
    same = own in STEPPED and not config.objective.steps and time_steps is None
    return BEST if same and BEST in possible else own


def _with_steps(config: Config, name: str, possible: Sequence[str], steps: int) -> Config:
    """The config whose objective has this number of steps."""
    if name not in STEPPED:
        able = [n for n in possible if n in STEPPED]
        use = f"use --estimator={' or '.join(able)}, or " if able else ""
        raise UserError(
            f"--time_steps={steps} does not apply to --estimator={name}: {use}leave it out."
        )
    changed = dataclasses.replace(config.objective, steps=steps, importance=None)
    return dataclasses.replace(config, objective=changed)


def _levels(name: str, options: dict[str, Any], config: Config) -> str:
    if name == "d3pm":
        return _STEPS.format(config.process.steps)
    if options.get("importance"):
        return "log(1 - alpha(t)) uniform between t = 0.001 and 1"
    if options.get("steps"):
        return _STEPS.format(options["steps"])
    return _LEVELS.get(name, _TIME)
