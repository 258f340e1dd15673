"""A trained run, opened to sample from it or to evaluate it.

Nothing in the run's folder changes, whether the run has ended or not.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jax
from ml_collections import ConfigDict

from ddm_jax.config import Config, resolve
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.diffusion.process import Process
from ddm_jax.errors import UserError
from ddm_jax.experiment import make_parts
from ddm_jax.models.network import Network, Params
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.parallel.layouts import Layout, dp
from ddm_jax.runs.checkpoint import folder_of, restore_weights
from ddm_jax.runs.files import read_metrics
from ddm_jax.runs.metrics import Metrics, to_metrics
from ddm_jax.runs.record import read_record
from ddm_jax.samplers import SAMPLERS
from ddm_jax.settle import fitting_samplers, settle

# the running average, the weights themselves, or their mean over the last N checkpoints
WEIGHTS = ("ema", "last", "average:N")
OptionValue = str | int | float | bool


@dataclass(frozen=True, repr=False)
class Run:
    """A trained network with all that reads it.

    Attributes:
      config: the settled config.
      tokenizer: of the data that the run was trained on.
      process: the forward process.
      network: its pure functions.
      step: of the checkpoint.
      params: the weights of that checkpoint.
      weights: which of them, one of WEIGHTS.
      workdir: the folder of the run; None for one that is not on disk.
    """

    config: Config
    tokenizer: Tokenizer
    process: Process
    network: Network
    step: int
    params: Params
    weights: str = "ema"
    workdir: Path | None = None

    @property
    def metrics(self) -> Metrics:
        """The metrics that the run has logged so far, read from its metrics.jsonl."""
        path = self.workdir and self.workdir / "metrics.jsonl"
        return to_metrics(read_metrics(path) if path else [])

    def __repr__(self) -> str:
        count = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"Run(workdir='{self.workdir}', step={self.step}, weights={self.weights!r}, "
            f"objective={self.config.objective.name!r}, {count:,} parameters)"
        )


def open_run(workdir: str | Path, weights: str = "ema", layout: Layout | None = None) -> Run:
    """Opens the newest readable checkpoint of a run.

    Args:
      workdir: the folder of the run, as ddm_jax.main or ddm_jax.train wrote it.
      weights: "ema", the running average of the weights; "last", those of the newest checkpoint;
        or "average:N", their mean over the newest N checkpoints.
      layout: how the weights are laid out; None for a copy on every local device.

    Raises:
      UserError: there is no run, no checkpoint, or its tokenizer is gone.
    """
    workdir = Path(workdir).expanduser()
    layout = layout or dp(jax.local_devices())
    which, last = _parse_weights(weights)
    config, tokenizer = read_record(workdir)
    process, _, network = make_parts(config, tokenizer.vocab_size)
    abstract = jax.eval_shape(network.init, jax.random.key(0))
    step, params = restore_weights(folder_of(workdir, config.train), abstract, layout, which, last)
    return Run(config, tokenizer, process, network, step, params, weights, workdir)


def with_sampler(
    config: Config,
    name: str = "auto",
    steps: int | None = None,
    length: int | None = None,
    options: Mapping[str, OptionValue] | None = None,
) -> Config:
    """The settled config of a run with another sampler, or with other options of its own.

    Args:
      config: of the run.
      name: of the sampler; "auto" keeps the run's, with its options.
      steps: of the sampler; None keeps the run's.
      length: tokens of a sequence; None keeps the run's.
      options: other fields of config.sampler, such as {"temperature": 0.5}.

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
                f"sampler={name!r} is unknown: this run can be sampled by {', '.join(fitting)}."
            )
        # those that are empty by default are options of the run's sampler
        own = {f.name for f in dataclasses.fields(config.sampler) if f.default is None}
        values["sampler"] = {k: x for k, x in values["sampler"].items() if k not in own}
        values["sampler"]["name"] = name
    values["sampler"] |= options or {}
    values["sampler"]["steps"] = config.sampler.steps if steps is None else steps
    values["data"]["length"] = config.data.length if length is None else length
    return settle(resolve(ConfigDict(values)))


def _parse_weights(text: str) -> tuple[str, int]:
    """One of WEIGHTS -> (item of a checkpoint, number of checkpoints)."""
    kind, _, number = text.partition(":")
    if text in ("ema", "last"):
        return {"ema": "ema", "last": "params"}[text], 1
    if kind == "average" and number.isdigit() and int(number):
        return "params", int(number)
    raise UserError(f"weights={text!r} is unknown: give one of {', '.join(WEIGHTS)}.")
