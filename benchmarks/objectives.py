"""What each objective costs: step time and peak memory, relative to radd_t_dce.

    python -m benchmarks.objectives [--width=128] [--length=64] [--vocab=4096] [--json]

All train the same network on the same random batch. The steps of an objective and of radd_t_dce
run in turn, for a machine's speed drifts: the figure is the median of the ratios round by round,
above 1 where the objective is faster. Memory is what XLA reserves for the compiled step: arguments,
results that do not reuse them, and temporaries.
"""

import json
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import app, flags

from ddm_jax import cli
from ddm_jax.config import Config, defaults, resolve
from ddm_jax.experiment import make_parts, settle
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.training.optimizer import make_optimizer
from ddm_jax.training.state import init_state
from ddm_jax.training.step import MEANS, make_train_step

REFERENCE = "radd_t_dce"
ROUNDS, STEPS = 7, 4

_WIDTH = flags.DEFINE_integer("width", 128, "Width of the network, of 3 layers.")
_LENGTH = flags.DEFINE_integer("length", 64, "Tokens of a sequence.")
_BATCH = flags.DEFINE_integer("batch", 16, "Sequences of a batch.")
_VOCAB = flags.DEFINE_integer("vocab", 4096, "Tokens of the vocabulary.")
_ONLY = flags.DEFINE_list("only", [], "Objectives to run; all if empty.")
_JSON = cli.define_json()


def main(argv: list[str]) -> None:
    """Prints one row for each objective."""
    del argv
    names = _ONLY.value or [n for n in OBJECTIVES if n != REFERENCE]
    reference, reference_bytes = compiled_step(REFERENCE)
    print(f"{'objective':24} {'ms/step':>8} {'ratio_to_' + REFERENCE:>20} {'MB':>7} {'memory':>7}")
    result = {}
    for name in names:
        run, size = compiled_step(name)
        times, ratios = [], []
        for _ in range(ROUNDS):
            base = reference()
            times.append(run())
            ratios.append(base / times[-1])
        row = {
            "step_s": statistics.median(times),
            f"ratio_to_{REFERENCE}": statistics.median(ratios),
            "peak_bytes": size,
            f"memory_over_{REFERENCE}": size / reference_bytes,
        }
        result[name] = row
        ms, ratio, size, memory = row.values()
        print(f"{name:24} {1e3 * ms:8.1f} {ratio:20.2f} {size / 1e6:7.1f} {memory:7.2f}")
    if _JSON.value:
        print(json.dumps(result))


def tiny(name: str) -> Config:
    """One objective on the network of the flags."""
    config = defaults()
    config.model.width, config.model.depth, config.model.heads = _WIDTH.value, 3, 4
    config.data.length, config.train.batch_size = _LENGTH.value, _BATCH.value
    config.objective.name = name
    return settle(resolve(config))


def compiled_step(name: str) -> tuple[Callable[[], float], int]:
    """(run() -> seconds a step, bytes that the compiled step reserves)."""
    config = tiny(name)
    process, objective, network = make_parts(config, _VOCAB.value)
    optimizer = make_optimizer(config.optim, config.train.steps)
    names = (*MEANS, *objective.metrics)
    state = init_state(network, optimizer, jax.random.key(0), names)
    shape = (config.train.batch_size, config.data.length)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, _VOCAB.value)
    batch = {"tokens": tokens, "valid": jnp.ones(shape, bool)}
    step = make_train_step(config, network, objective, process, optimizer)
    step = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    memory = step.memory_analysis()
    reserved = memory.argument_size_in_bytes + memory.output_size_in_bytes
    reserved += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    state, _ = step(state, batch)

    def run() -> float:
        nonlocal state
        jax.block_until_ready(state)
        begin = time.perf_counter()
        for _ in range(STEPS):
            state, _ = step(state, batch)
        jax.block_until_ready(state)
        return (time.perf_counter() - begin) / STEPS

    return run, reserved


if __name__ == "__main__":
    app.run(main)
