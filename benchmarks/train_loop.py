"""What the loop costs: step time in training against the bare compiled step.

    python -m benchmarks.train_loop [--json]

Both run the tiny recipe in turn, several rounds; the bare step repeats on one batch that is already
on the device. The loop adds the loader, the transfers, the metrics and the progress line. Rounds
are short, for a machine's speed drifts: the figure is the median of the ratios round by round.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app

from configs.radd_tiny import get_config
from ddm_jax import cli
from ddm_jax.config import Config, resolve
from ddm_jax.experiment import Experiment, build
from ddm_jax.training.loop import train
from ddm_jax.training.optimizer import make_optimizer
from ddm_jax.training.state import init_state
from ddm_jax.training.step import MEANS, make_train_step
from ddm_jax.training.writers import read_metrics

ROUNDS = 15
INTERVALS = 2  # of train.log_every steps in a round of the loop; the first is left out as cold

_JSON = cli.define_json()


def main(argv: list[str]) -> None:
    """Prints the two step times and their ratio."""
    del argv
    config = tiny_without_validation()
    experiment = build(config)
    bare_round = bare_step(experiment)
    bare, loop = [], []
    with tempfile.TemporaryDirectory() as cache:
        jax.config.update("jax_compilation_cache_dir", cache)  # every round compiles the same
        for _ in range(ROUNDS):
            bare.append(bare_round())
            loop.append(loop_step_seconds(experiment))
    overheads = sorted(100 * (b / a - 1) for a, b in zip(bare, loop, strict=True))
    result = {
        "bare_step_s": statistics.median(bare),
        "loop_step_s": statistics.median(loop),
        "overhead_percent": statistics.median(overheads),
        "overhead_percent_quartiles": statistics.quantiles(overheads, n=4),
    }
    print(f"bare step {1e3 * result['bare_step_s']:.1f} ms")
    print(f"loop step {1e3 * result['loop_step_s']:.1f} ms")
    low, middle, high = result["overhead_percent_quartiles"]
    print(f"overhead of the loop {middle:.2f} % (quartiles {low:.1f} and {high:.1f} %)")
    if _JSON.value:
        print(json.dumps(result))


def tiny_without_validation() -> Config:
    """configs/radd_tiny.py for a few logs, with as little as possible at the end."""
    config = get_config()
    config.train.steps = INTERVALS * config.train.log_every
    config.optim.decay = "constant"
    config.train.checkpoint_every = config.eval.every = 10**6
    config.eval.sequences = config.eval.batch_size = 2
    config.eval.draws = config.sampler.steps = config.sampler.num = 1
    return resolve(config)


def bare_step(experiment: Experiment) -> Callable[[], float]:
    """run() -> seconds a step, over train.log_every steps."""
    config = experiment.config
    optimizer = make_optimizer(config.optim, config.train.steps)
    step = make_train_step(
        config, experiment.network, experiment.objective, experiment.process, optimizer
    )
    step = jax.jit(step, donate_argnums=0)
    names = (*MEANS, *experiment.objective.metrics)
    state = init_state(experiment.network, optimizer, jax.random.key(0), names)
    tokens, valid = experiment.data.blocks("train").read(range(config.train.batch_size))
    batch = jax.device_put({"tokens": tokens, "valid": valid})
    state, _ = step(state, batch)

    def interval() -> float:
        nonlocal state
        jax.block_until_ready(state)
        begin = time.perf_counter()
        for _ in range(config.train.log_every):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        return (time.perf_counter() - begin) / config.train.log_every

    return interval


def loop_step_seconds(experiment: Experiment) -> float:
    """Seconds a step in the last interval of `train`, by its own metrics.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        train(experiment, Path(folder))
        records = read_metrics(Path(folder) / "metrics.jsonl")
    return [r["step_s"] for r in records if "step_s" in r][-1]


if __name__ == "__main__":
    app.run(main)
