"""Comparison of trained runs: likelihood, speed of training and of sampling.

    python -m benchmarks.speed --workdirs=work/ar,work/d3pm [--tokens=100000] [--batch=4] [--json]

Bits per token, nats per token and perplexity of the first validation blocks, each with the run's
own estimator (a bound for diffusion, exact for autoregressive runs); batches and tokens per second
while --tokens are drawn in batches of --batch, network evaluations, and seconds of a single
sequence; and batches and tokens per second of training. Runs on one device; compilation and a first
batch are left out. Times of two runs are comparable only if the machine does nothing else.
"""

import json
import math
from pathlib import Path
from typing import Any

import jax
from absl import flags

from benchmarks.timing import sampling_speed, training_speed
from ddm_jax import cli
from ddm_jax.data.loading.loader import eval_batches
from ddm_jax.errors import UserError
from ddm_jax.evaluation.likelihood.monte_carlo import estimate, make_bound
from ddm_jax.experiment import build
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.run import open_run

_WORKDIRS = flags.DEFINE_list("workdirs", [], "Runs to compare.")
_TOKENS = flags.DEFINE_integer("tokens", 100_000, "Tokens to draw from each.")
_BATCH = flags.DEFINE_integer("batch", 4, "Sequences drawn at once.")
_STEPS = flags.DEFINE_integer("steps", None, "Steps of the sampler; each run's own by default.")
_TRAIN_STEPS = flags.DEFINE_integer("train_steps", 50, "Training steps to time.")
_SEQUENCES = flags.DEFINE_integer("sequences", 512, "Validation blocks of the likelihood.")
_DRAWS = flags.DEFINE_integer("draws", 16, "Corruptions of each block.")
_JSON = cli.define_json()

COLUMNS = (
    ("nats/token", "nll", ".3f"),
    ("+-", "stderr", ".3f"),
    ("bits/token", "bits_per_token", ".3f"),
    ("perplexity", "ppl", ".1f"),
    ("sampler", "sampler", "s"),
    ("steps", "steps", "d"),
    ("NFE", "nfe", ".1f"),
    ("batches/s", "batches_per_s", ".3g"),
    ("tokens/s", "tokens_per_s", ".4g"),
    ("s per sequence", "latency_s", ".3g"),
    ("training batches/s", "train_batches_per_s", ".3g"),
    ("training tokens/s", "train_tokens_per_s", ".4g"),
)


def main(argv: list[str]) -> None:
    """Prints a row for each run."""
    del argv
    if not _WORKDIRS.value:
        raise UserError("--workdirs is missing: give folders of runs, e.g. --workdirs=work/demo.")
    print("| run | " + " | ".join(head for head, _, _ in COLUMNS) + " |")
    print("|---" * (len(COLUMNS) + 1) + "|")
    result = {}
    for workdir in _WORKDIRS.value:
        result[workdir] = found = measure(Path(workdir).expanduser())
        cells = " | ".join(format(found[name], form) for _, name, form in COLUMNS)
        print(f"| {found['objective']} ({workdir}) | {cells} |", flush=True)
    if _JSON.value:
        print(json.dumps(result))


def measure(workdir: Path) -> dict[str, Any]:
    """The values of COLUMNS for a run, and the settings of the measurement."""
    layout = dp(jax.local_devices()[:1])
    run = open_run(workdir, layout=layout)
    if run.config.model.kind != "lm":
        raise UserError(
            f"The run in {workdir} translates sources to targets: give language models."
        )
    experiment = build(run.config)
    estimator = experiment.estimator
    draws = min(_DRAWS.value, run.config.eval.draws)  # 1 where it is exact
    bound = jax.jit(make_bound(run.network, estimator.loss, run.process, draws))
    batches = eval_batches(
        experiment.data,
        "validation",
        batch_size=run.config.eval.batch_size,
        limit=_SEQUENCES.value,
    )
    size = experiment.data.bytes_per_token("validation")
    found = estimate(bound, run.params, batches, draws, size, estimator.estimates)
    return {
        "objective": run.config.objective.name,
        **found.metrics(),
        "bits_per_token": found.nll / math.log(2),
        "estimator": run.config.eval.estimator,
        "estimates": found.estimates,
        "draws": draws,
        **sampling_speed(run, layout, _STEPS.value, _TOKENS.value, _BATCH.value),
        **training_speed(experiment, _TRAIN_STEPS.value),
        "length": run.config.data.length,
        "batch_size": _BATCH.value,
        "device": jax.local_devices()[0].device_kind,
    }


if __name__ == "__main__":
    cli.run(main)
