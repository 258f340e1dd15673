"""Losses from the head: peak memory and time of three ways, at GPT-2's vocabulary.

    python -m benchmarks.head [--positions=2048] [--width=256] [--masked=0.5] [--rounds=7] [--json]

Cross entropy of the masked positions and its gradients with respect to hidden states, kernel and
bias, as in training. `all` holds the logits [B, L, V]; `read` reads all positions in chunks and
computes them again in the backward pass (Readout.read); `losses` reads only the masked positions
and computes their gradients at the same time (models/head.py). The three run in turn, and ratios
are medians over rounds. Memory is what XLA reserves in addition to arguments and results. Gradients
must agree to 1e-5 of the largest, otherwise the program stops. ratio_to_X compares `losses` with X;
above 1 means that `losses` is faster.
"""

import json
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from jax import Array

from ddm_jax import cli
from ddm_jax.models import readout
from ddm_jax.models.network import padded_vocab
from ddm_jax.models.readout import Readout, take_logit

_POSITIONS = flags.DEFINE_integer("positions", 2048, "Positions, in 8 sequences.")
_WIDTH = flags.DEFINE_integer("width", 256, "Width of the hidden states.")
_VOCAB = flags.DEFINE_integer("vocab", 50_258, "Tokens of the vocabulary.")
_MASKED = flags.DEFINE_float("masked", 0.5, "Share of the positions that carry loss.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds; each way runs once per round.")
_JSON = cli.define_json()


def main(argv: list[str]) -> None:
    """Prints one row for each way."""
    del argv
    result = measure(_POSITIONS.value, _WIDTH.value, _VOCAB.value, _MASKED.value, _ROUNDS.value)
    print(f"{'':8} {'ms':>8} {'MB':>8} {'time':>6} {'memory':>7} {'gradients differ by':>20}")
    for name, row in result.items():
        print(
            f"{name:8} {1e3 * row['seconds']:8.0f} {row['bytes'] / 1e6:8.1f} "
            f"{row['time_over_all']:6.2f} {row['memory_over_all']:7.3f} {row['differ']:20.1e}"
        )
    if _JSON.value:
        print(json.dumps(result))


def of_all(readout: Readout, targets: Array, weight: Array) -> Array:
    """Cross entropy from the logits of all positions at once."""
    logits = readout.logits()
    return weight * (jax.nn.logsumexp(logits, axis=-1) - take_logit(logits, targets))


def of_read(readout: Readout, targets: Array, weight: Array) -> Array:
    """Cross entropy of all positions, read in chunks."""
    logit, lse = readout.target(targets)
    return weight * (lse - logit)


WAYS = {"all": of_all, "read": of_read, "losses": Readout.cross_entropy}


def measure(
    positions: int, width: int, vocab: int, masked: float, rounds: int
) -> dict[str, dict[str, Any]]:
    """Name of the way -> seconds, bytes, and both relative to `all`."""
    keys = jax.random.split(jax.random.key(0), 4)
    shape, padded = (8, positions // 8), padded_vocab(vocab)
    hidden = jax.random.normal(keys[0], (*shape, width))
    kernel = 0.1 * jax.random.normal(keys[1], (width, padded))
    targets = jax.random.randint(keys[2], shape, 0, vocab)
    weight = (jax.random.uniform(keys[3], shape) < masked).astype(jnp.float32)
    arguments = hidden, kernel, jnp.zeros(padded)
    # so that chunks are as small a part of this batch as of a real one
    readout.LOGIT_BYTES = positions * padded

    def compiled(losses: Any) -> Any:
        def mean(*given: Array) -> Array:
            return losses(Readout(*given, vocab), targets, weight).mean()

        return jax.jit(jax.value_and_grad(mean, (0, 1, 2))).lower(*arguments).compile()

    programs = {name: compiled(losses) for name, losses in WAYS.items()}
    answers = {name: jax.block_until_ready(run(*arguments)) for name, run in programs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(rounds):
        for name, run in programs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run(*arguments))
            seconds[name].append(time.perf_counter() - begin)
    reserved = {n: run.memory_analysis().temp_size_in_bytes for n, run in programs.items()}
    result = {}
    for name in programs:
        pairs = list(zip(seconds[name], seconds["all"], strict=True))
        result[name] = {
            "seconds": statistics.median(seconds[name]),
            "bytes": reserved[name],
            "time_over_all": statistics.median(own / whole for own, whole in pairs),
            "memory_over_all": reserved[name] / reserved["all"],
            "differ": difference(answers[name], answers["all"]),
        }
    for name in ("all", "read"):
        ratios = [o / own for o, own in zip(seconds[name], seconds["losses"], strict=True)]
        result["losses"][f"ratio_to_{name}"] = statistics.median(ratios)
    return result


def difference(found: Any, wanted: Any) -> float:
    """The largest distance between two trees of arrays, relative to each array's largest entry.

    Raises:
      AssertionError: it is 1e-5 or more.
    """

    def of_array(a: Array, b: Array) -> float:
        return float(jnp.abs(a - b).max() / jnp.abs(b).max())

    worst = max(jax.tree.leaves(jax.tree.map(of_array, found, wanted)))
    assert worst < 1e-5, f"gradients differ by {worst}"
    return worst


if __name__ == "__main__":
    app.run(main)
