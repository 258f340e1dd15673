"""What translate.py and evaluate.py share: the translator of a run, as the flags set it."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax

from ddm_jax import run_flags
from ddm_jax.config import Config
from ddm_jax.errors import UserError
from ddm_jax.experiment import make_sampler
from ddm_jax.generation.translation import Translator, make_translator
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.record import read_record
from ddm_jax.runs.run import Run, open_run


def read_run(workdir: Path) -> Config:
    """The config of the run as the flags change it; reads no weights yet.

    Raises:
      UserError: there is no run, it has no sources, or a flag does not fit it.
    """
    config, _ = read_record(workdir)
    if config.model.kind == "lm":
        raise UserError(
            f"The run in {workdir} has no sources (config.model.kind='lm'): use "
            "`python -m ddm_jax.sample`, or give a run on pairs."
        )
    config = run_flags.applied(config, length=None)
    sizes = dataclasses.replace(config.eval, batch_size=run_flags.FLAGS.batch_size or 64)
    return dataclasses.replace(config, eval=sizes)


def open_translator(workdir: Path, config: Config) -> tuple[Run, Translator]:
    """The weights that the flags choose, and what translates with them.

    Raises:
      UserError: there is no checkpoint.
    """
    devices = jax.local_devices()[: math.gcd(config.eval.batch_size, jax.local_device_count())]
    layout = dp(devices)
    run = open_run(workdir, layout, run_flags.FLAGS.weights)
    sampler = make_sampler(config)
    return run, make_translator(run.network, run.process, sampler, config, run.tokenizer, layout)


def settings(run: Run, config: Config) -> dict[str, Any]:
    """All that decides the targets, for the record."""
    sampler = {k: x for k, x in dataclasses.asdict(config.sampler).items() if x is not None}
    del sampler["num"]
    return {
        "checkpoint": run.step,
        "weights": run_flags.FLAGS.weights,
        "sampler": sampler,
        "batch_size": config.eval.batch_size,
        "seed": run_flags.FLAGS.seed,
    }
