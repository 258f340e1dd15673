"""A trained run, opened to be sampled or judged: `open_run`, another sampler, the compiled program.

Nothing in the run's folder changes, whether the run has ended or not.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from ddm_jax.config import TYPE_WORDS, Config, field_type, resolve
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.diffusion.process import Process
from ddm_jax.errors import UserError
from ddm_jax.experiment import make_parts
from ddm_jax.models.network import Network
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.parallel.layouts import Layout
from ddm_jax.runs.checkpoint import folder_of, restore_weights
from ddm_jax.runs.record import read_record
from ddm_jax.samplers import SAMPLERS
from ddm_jax.settle import fitting_samplers, settle

# the running average, the weights themselves, or their mean over the last N checkpoints
WEIGHTS = ("ema", "last", "average:N")


@dataclass(frozen=True)
class Run:
    """A trained network with all that reads it; params are the weights of checkpoint `step`."""

    config: Config
    tokenizer: Tokenizer
    process: Process
    network: Network
    step: int
    params: Any


def open_run(workdir: Path, layout: Layout, weights: str = "ema") -> Run:
    """The newest readable checkpoint of a run, laid out on the devices.

    weights: one of WEIGHTS.

    Raises:
      UserError: there is no run, no checkpoint, or its tokenizer is gone.
    """
    which, last = _parse_weights(weights)
    config, tokenizer = read_record(workdir)
    process, _, network = make_parts(config, tokenizer.vocab_size)
    abstract = jax.eval_shape(network.init, jax.random.key(0))
    step, params = restore_weights(folder_of(workdir, config.train), abstract, layout, which, last)
    return Run(config, tokenizer, process, network, step, params)


def with_sampler(
    config: Config, name: str, steps: int | None, length: int | None, options: Sequence[str]
) -> Config:
    """The settled config of a run with another sampler, or with the run's set otherwise.

    Args:
      config: of the run.
      name: of the sampler; "auto" keeps the run's, with its options.
      steps, length: None keeps the run's.
      options: "name=value", of the sampler.

    Raises:
      UserError: there is no such sampler, it does not fit the run, or an option does not fit it.
    """
    values = dataclasses.asdict(config)
    if name not in ("auto", config.sampler.name):
        if name not in SAMPLERS:
            fitting = fitting_samplers(
                OBJECTIVES[config.objective.name], config.process.name, config.model.time
            )
            raise UserError(
                f"--sampler={name} is unknown: this run can be sampled by {', '.join(fitting)}."
            )
        # those that are empty by default are options of the run's sampler
        own = {f.name for f in dataclasses.fields(config.sampler) if f.default is None}
        values["sampler"] = {k: x for k, x in values["sampler"].items() if k not in own}
        values["sampler"]["name"] = name
    values["sampler"] |= dict(map(_parse_option, options))
    values["sampler"]["steps"] = steps or config.sampler.steps
    values["data"]["length"] = config.data.length if length is None else length
    return settle(resolve(ConfigDict(values)))


def _parse_weights(text: str) -> tuple[str, int]:
    """One of WEIGHTS -> (item of a checkpoint, number of checkpoints)."""
    kind, _, number = text.partition(":")
    if text in ("ema", "last"):
        return {"ema": "ema", "last": "params"}[text], 1
    if kind == "average" and number.isdigit() and int(number):
        return "params", int(number)
    raise UserError(f"--weights={text} is unknown: give one of {', '.join(WEIGHTS)}.")


def _parse_option(text: str) -> tuple[str, Any]:
    """`name=value` -> (name, value), of the type that the field of config.sampler has."""
    name, equals, value = text.partition("=")
    if not equals or name in ("name", "steps", "num"):
        raise UserError(
            f"--option={text} is not name=value of an option of the sampler: its name and steps "
            "have their own flags."
        )
    wanted = field_type(f"sampler.{name}")
    try:
        if wanted is bool:
            return name, {"true": True, "false": False}[value.lower()]
        return name, wanted(value)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"--option={text} has the wrong type: give {TYPE_WORDS[wanted]}."
        ) from error
