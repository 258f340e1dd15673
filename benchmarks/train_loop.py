"""The overhead of the training loop: its step time against that of the bare compiled step.

    python -m benchmarks.train_loop [--json]

Both run the tiny recipe in turn for several rounds; the bare step uses one batch that is already on
the device. The loop adds the loader, the transfers, the metrics and the progress line. Because a
machine's speed drifts, the results are medians of the ratios over rounds: by the clock, and by the
CPU seconds of all threads, which other programs disturb less.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax

from benchmarks.peers.ours import our_step
from configs.radd_tiny import get_config
from ddm_jax import cli
from ddm_jax.config import Config, resolve
from ddm_jax.experiment import Experiment, build
from ddm_jax.training.loop import train_experiment
from ddm_jax.training.metric_writers import Writers

ROUNDS = 15
INTERVALS = 4  # of train.log_every steps in a round of the loop; the first is a warm-up

_JSON = cli.define_json()


class Seconds(NamedTuple):
    """Seconds by the clock, and CPU seconds of all threads of the process."""

    clock: float
    cpu: float


def now() -> Seconds:
    """The current reading of both clocks."""
    return Seconds(time.perf_counter(), time.process_time())


def main(argv: list[str]) -> None:
    """Prints the step times and their ratios."""
    del argv
    config = tiny_without_validation()
    experiment = build(config)
    bare_round = bare_step(experiment)
    bare, loop = [], []
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update(
            "jax_compilation_cache_dir", cache
        )  # every round compiles the same program
        for _ in range(ROUNDS):
            bare.append(bare_round())
            loop.append(loop_step(experiment))
    result = {}
    for kind in Seconds._fields:
        ours, theirs = ([getattr(x, kind) for x in found] for found in (loop, bare))
        overheads = [100 * (b / a - 1) for a, b in zip(theirs, ours, strict=True)]
        low, middle, high = statistics.quantiles(overheads, n=4)
        a, b = (statistics.median(x) for x in (theirs, ours))
        result[kind] = {
            "bare_step_s": a,
            "loop_step_s": b,
            "overhead_percent": middle,
            "quartiles": [low, high],
        }
        print(
            f"{kind}: bare step {1e3 * a:.1f} ms, in the loop {1e3 * b:.1f} ms, overhead "
            f"{middle:.2f} % (quartiles {low:.1f} and {high:.1f} %)"
        )
    if _JSON.value:
        print(json.dumps(result))


def tiny_without_validation() -> Config:
    """configs/radd_tiny.py for a few logs, with as little work as possible at the end."""
    config = get_config()
    config.train.steps = INTERVALS * config.train.log_every
    config.optim.decay = "constant"
    config.train.checkpoint_every = config.eval.every = 10**6
    config.eval.sequences = config.eval.batch_size = 2
    config.eval.draws = config.sampler.steps = config.sampler.num = 1
    return resolve(config)


def bare_step(experiment: Experiment) -> Callable[[], Seconds]:
    """run() -> seconds per step, over as many steps as a round of the loop counts."""
    config = experiment.config
    made = experiment.process, experiment.objective, experiment.network
    ours = our_step(config, *made, config.data.length, experiment.layout)
    state, _ = ours.program(ours.start(), ours.batch)
    steps = (INTERVALS - 1) * config.train.log_every

    def interval() -> Seconds:
        nonlocal state
        jax.block_until_ready(state)
        begin = now()
        for _ in range(steps):
            state, _ = ours.program(state, ours.batch)
        jax.block_until_ready(state)
        return Seconds(*((b - a) / steps for a, b in zip(begin, now(), strict=True)))

    return interval


def loop_step(experiment: Experiment) -> Seconds:
    """Seconds per step between the first and the last log of `train`."""
    seen: dict[int, Seconds] = {}

    def write(writers: Writers, step: int, values: dict[str, float]) -> None:
        seen.setdefault(step, now())
        written(writers, step, values)

    written = Writers.write
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(Writers, "write", write):
        train_experiment(experiment, Path(folder))
    first, last = min(seen), experiment.config.train.steps
    between = zip(seen[first], seen[last], strict=True)
    return Seconds(*((b - a) / (last - first) for a, b in between))


if __name__ == "__main__":
    cli.run(main)
