r"""Trains a recipe, or resumes its run.

    python -m ddm_jax.main --config=radd_tiny
    python -m ddm_jax.main --config=radd_tiny --workdir=work/sedd --config.train.steps=200 \
        --config.objective.name=sedd_uniform

A recipe is a Python file, or the name of one that ships with ddm_jax. Ctrl-C saves a checkpoint and
stops; the same command resumes. Everything is written to the work directory.
"""

import json
import os
import shlex
from collections.abc import Sequence
from typing import Any

from absl import flags

from ddm_jax import cli
from ddm_jax.errors import UserError
from ddm_jax.parallel import processes
from ddm_jax.runs.interrupt import exit_code
from ddm_jax.training.curve import CURVE
from ddm_jax.training.loop import STALL_TIMEOUT, Outcome, train
from ddm_jax.training.metric_writers import TENSORBOARD
from ddm_jax.wording import printable

FLAGS = flags.FLAGS
WRITTEN = ("config.json", "metrics.jsonl", "checkpoints", "samples", TENSORBOARD, CURVE)


def define_flags() -> None:
    """Defines the flags of this command."""
    with cli.group("The run"):
        cli.define_config()
        flags.DEFINE_string(
            "workdir", "", "folder of the run; an existing run is resumed (default: work/RECIPE)"
        )
        flags.DEFINE_integer(
            "stall_timeout",
            None,
            "with several processes: seconds without a finished step after which all end "
            f"(default: {STALL_TIMEOUT:g}, or the environment variable DDM_STALL_TIMEOUT)",
        )
    cli.define_json()


def main(argv: Sequence[str]) -> int:
    """Trains or resumes a run, and prints a report.

    Returns:
      The exit code, the same in all processes: 0, or that of the signal that stopped the run.
    """
    del argv
    stall_timeout = _stall_timeout()
    processes.initialize()
    config = cli.read_config(FLAGS.config)
    workdir = FLAGS.workdir or f"work/{cli.recipe_name()}"
    outcome = train(config, workdir, stall_timeout)
    if processes.is_first():
        print(report(outcome))
        if FLAGS.json:
            print(json.dumps(_result(outcome)))
    processes.finalize()
    return exit_code(outcome.signal) if outcome.signal else 0


def _result(outcome: Outcome) -> dict[str, Any]:
    result = {"step": outcome.step, "finished": outcome.finished, "workdir": str(outcome.workdir)}
    if outcome.validation:
        result |= outcome.validation.metrics() | {"unigram_nll": outcome.unigram_nll}
        result["estimates"] = outcome.validation.bound.estimates
    return result


def _stall_timeout() -> int:
    text = os.environ.get("DDM_STALL_TIMEOUT", f"{STALL_TIMEOUT:g}")
    if FLAGS.stall_timeout is not None:
        text = str(FLAGS.stall_timeout)
    if not text.isdigit() or not int(text):
        raise UserError(f"--stall_timeout={text} is not a valid duration: give at least 1 second.")
    return int(text)


def report(outcome: Outcome) -> str:
    """The end of a run, in words: samples, validation, and which files were written."""
    lines = []
    if outcome.validation:
        for i, (_, text) in enumerate(outcome.validation.samples):
            lines += [f"--- sample {i + 1} ---", printable(text.strip()), ""]
        b, scores = outcome.validation.bound, outcome.validation.scores
        lines += [
            f"{'Last validation' if outcome.signal else 'Validation'}: {b.summary()}",
            f"  {b.size()}, averaged weights; a unigram model has {outcome.unigram_nll:.4f}",
        ]
        if scores:
            lines.append(
                f"BLEU {scores['bleu']:.2f} on held-out pairs; copying the source has "
                f"{scores['bleu_copy']:.2f}."
            )
    if outcome.signal:
        lines.append(f"Stopped and saved at step {outcome.step}. Run the same command to resume.")
    found = [outcome.workdir / name for name in WRITTEN]
    written = [f"{path.name}{'/' * path.is_dir()}" for path in found if path.exists()]
    lines.append(f"Wrote {outcome.workdir}/: {', '.join(written)}")
    folder = shlex.quote(str(outcome.workdir / TENSORBOARD))
    lines.append(f"To look at it: pip install tensorboard; tensorboard --logdir={folder}")
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main, define_flags)
