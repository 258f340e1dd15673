"""What each objective costs: step time and peak memory, relative to radd_t_dce.

    python -m benchmarks.objectives [--width=128] [--length=64] [--vocab=4096] [--json]

All train the same network on the same random batch. The steps of an objective and of radd_t_dce
run in turn, because a machine's speed drifts; the result is the median of the ratios over rounds,
above 1 if the objective is faster. Memory is what XLA reserves for the compiled step: arguments,
results that do not reuse them, and temporaries.
"""

import json
import statistics

from absl import app, flags

from benchmarks.peers.ours import Ours, our_step
from ddm_jax import cli
from ddm_jax.config import Config, defaults, resolve
from ddm_jax.experiment import make_parts
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.settle import settle

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
    step = compiled_step(REFERENCE)
    reference, reference_bytes = step.turn(STEPS), step.reserved_bytes
    print(f"{'objective':24} {'ms/step':>8} {'ratio_to_' + REFERENCE:>20} {'MB':>7} {'memory':>7}")
    result = {}
    for name in names:
        step = compiled_step(name)
        run, size = step.turn(STEPS), step.reserved_bytes
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
    """The settled config of an objective on the network of the flags."""
    config = defaults()
    config.model.width, config.model.depth, config.model.heads = _WIDTH.value, 3, 4
    config.data.length, config.train.batch_size = _LENGTH.value, _BATCH.value
    config.objective.name = name
    return settle(resolve(config))


def compiled_step(name: str) -> Ours:
    """The compiled training step of an objective."""
    config = tiny(name)
    return our_step(config, *make_parts(config, _VOCAB.value), _LENGTH.value)


if __name__ == "__main__":
    app.run(main)
