"""What the loop costs: step time in training against the bare compiled step.

    python -m benchmarks.train_loop [--json]

Both run the tiny recipe in turn, several rounds; the bare step repeats on one batch that is already
on the device. The loop adds the loader, the transfers, the metrics and the progress line.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
from absl import app, flags

from configs.radd_tiny import get_config
from ddm_jax.config import Config, resolve
from ddm_jax.experiment import Experiment, build
from ddm_jax.training.loop import train
from ddm_jax.training.optimizer import make_optimizer
from ddm_jax.training.state import init_state
from ddm_jax.training.step import MEANS, make_train_step
from ddm_jax.training.writers import read_metrics

ROUNDS = 5
INTERVALS = 3  # of train.log_every steps in a round; the loop's first is left out as cold

_JSON = flags.DEFINE_bool("json", False, "Print one JSON object as the last line.")


def main(argv: list[str]) -> None:
    """Prints the two step times and their ratio."""
    del argv
    config = tiny_without_validation()
    experiment = build(config)
    bare_round = bare_step(experiment)
    bare, loop = [], []
    for _ in range(ROUNDS):
        bare.append(bare_round((INTERVALS - 1) * config.train.log_every))
        loop.append(loop_step_seconds(experiment))
    overheads = [100 * (b / a - 1) for a, b in zip(bare, loop, strict=True)]
    result = {
        "bare_step_s": statistics.median(bare),
        "loop_step_s": statistics.median(loop),
        "overhead_percent": statistics.median(overheads),
        "overhead_percent_per_round": [round(x, 2) for x in overheads],
    }
    print(f"bare step   {1e3 * result['bare_step_s']:.1f} ms")
    print(f"in the loop {1e3 * result['loop_step_s']:.1f} ms")
    rounds = result["overhead_percent_per_round"]
    print(f"overhead    {result['overhead_percent']:.2f} % (median of the rounds {rounds})")
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


def bare_step(experiment: Experiment) -> Callable[[int], float]:
    """run(steps) -> seconds a step."""
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

    def run(steps: int) -> float:
        nonlocal state
        jax.block_until_ready(state)
        begin = time.perf_counter()
        for _ in range(steps):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        return (time.perf_counter() - begin) / steps

    return run


def loop_step_seconds(experiment: Experiment) -> float:
    """Seconds a step in `train`, by its own metrics.jsonl."""
    with tempfile.TemporaryDirectory() as folder:
        train(experiment, Path(folder))
        records = read_metrics(Path(folder) / "metrics.jsonl")
    first = experiment.config.train.log_every
    return statistics.mean(r["step_s"] for r in records if "step_s" in r and r["step"] > first)


if __name__ == "__main__":
    app.run(main)
