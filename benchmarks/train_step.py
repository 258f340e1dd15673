"""A training step compared with plain PyTorch: RADD's t-DCE, AdamW, clipping, weight average.

    python -m benchmarks.train_step [--width=256] [--depth=6] [--batch=8] [--rounds=7] [--json]

Both have the same network: with the same weights they give one batch the same loss, which is
checked first. PyTorch (benchmarks/peers/pytorch.py) computes the logits of every position, eagerly
and, if that works, with torch.compile. Each program runs in a process of its own and takes its turn
in every round, so that a drift of the machine's speed affects all. ratio_to_X is the median over
rounds of X's seconds divided by ours, above 1 if ours is faster. CPU seconds are those of all
threads, which other programs disturb less. Peak memory is the largest resident size of the process,
including its start and its compiler. `pip install -e '.[bench]'` installs PyTorch; without it only
ours runs.
"""

import importlib.util
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from absl import app, flags

from ddm_jax import cli
from ddm_jax.config import ModelConfig

_WIDTH = flags.DEFINE_integer("width", 256, "Width of the network.")
_DEPTH = flags.DEFINE_integer("depth", 6, "Layers.")
_HEADS = flags.DEFINE_integer("heads", 8, "Attention heads.")
_LENGTH = flags.DEFINE_integer("length", 256, "Tokens of a sequence.")
_BATCH = flags.DEFINE_integer("batch", 8, "Sequences of a batch.")
_VOCAB = flags.DEFINE_integer("vocab", 8192, "Tokens of the vocabulary.")
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Rounds; each program runs once per round.")
_STEPS = flags.DEFINE_integer("steps", 3, "Steps of a turn.")
_COMPILE = flags.DEFINE_bool("compile", True, "Time torch.compile too.")
_JSON = cli.define_json()

Step = Callable[[], float]  # trains on one batch and returns the loss


def main(argv: list[str]) -> None:
    """Prints one row for each program."""
    del argv
    if os.getloadavg()[0] > 0.5:
        print(
            "Other programs are running: PyTorch's threads wait by spinning, so it looks too slow."
        )
    names = ["ours"]
    if importlib.util.find_spec("torch"):
        names += ["torch", "torch_compile"] if _COMPILE.value else ["torch"]
    result = compare(names, sizes(), _ROUNDS.value, _STEPS.value)
    print(f"{'':14} {'ms/step':>8} {'CPU ms':>8} {'tokens/s':>9} {'MB':>6} {'ours':>5} {'CPU':>5}")
    for name, row in result.items():
        print(
            f"{name:14} {1e3 * row['step_s']:8.0f} {1e3 * row['cpu_s']:8.0f} "
            f"{row['tokens_per_s']:9.0f} {row['peak_mb']:6.0f} "
            + (f"{row['ours']:5.2f} {row['ours_cpu']:5.2f}" if "ours" in row else "")
        )
    if _JSON.value:
        print(json.dumps(summary(result)))


def sizes() -> dict[str, int]:
    """The sizes that the flags set."""
    chosen = (_WIDTH, _DEPTH, _HEADS, _LENGTH, _BATCH, _VOCAB)
    return {flag.name: flag.value for flag in chosen}


def summary(result: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The rows, with ratio_to_X and memory_ratio_to_X in the row of `ours`."""
    ratios = {f"ratio_to_{name}": row["ours"] for name, row in result.items() if "ours" in row}
    memory = {
        f"memory_ratio_to_{name}": row["peak_mb"] / result["ours"]["peak_mb"]
        for name, row in result.items()
        if "ours" in row
    }
    return result | {"ours": result["ours"] | ratios | memory}


def compare(
    names: list[str], sizes: dict[str, int], rounds: int, steps: int
) -> dict[str, dict[str, float]]:
    """Name -> medians over rounds; a program that does not start is reported and left out."""
    context = multiprocessing.get_context("spawn")
    if "torch" in names:
        with ProcessPoolExecutor(1, context) as pool:  # in a process whose memory is then freed
            ours, params = pool.submit(our_loss, sizes).result()
            theirs = pool.submit(torch_loss, sizes, params).result()
            if abs(theirs - ours) > 1e-4 * ours:
                raise AssertionError(f"torch computes another loss: {theirs}, ours {ours}")
    pipes: dict[str, Connection] = {}
    for name in names:
        here, there = context.Pipe()
        context.Process(target=worker, args=(name, sizes, there), daemon=True).start()
        failed = here.recv()  # sent after its first step: it is compiled
        if failed:
            print(f"{name} does not run: {failed}")
        else:
            pipes[name] = here
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in pipes}
    for _ in range(rounds):
        for name, pipe in pipes.items():
            pipe.send(steps)
            turns[name].append(pipe.recv())
    rows = {}
    for name, pipe in pipes.items():
        pipe.send(0)
        wall, cpu = zip(*turns[name], strict=True)
        row = {"step_s": statistics.median(wall), "cpu_s": statistics.median(cpu)}
        row["peak_mb"] = pipe.recv()
        row["tokens_per_s"] = sizes["batch"] * sizes["length"] / row["step_s"]
        if name != "ours":
            pairs = list(zip(turns[name], turns["ours"], strict=True))
            ratios = [theirs[0] / own[0] for theirs, own in pairs]
            row["ours"] = statistics.median(ratios)
            row["ours_quartiles"] = statistics.quantiles(ratios, n=4)
            row["ours_cpu"] = statistics.median(theirs[1] / own[1] for theirs, own in pairs)
        rows[name] = row
    return rows


def worker(name: str, sizes: dict[str, int], pipe: Connection) -> None:
    """Sends "" or why it failed; then answers n with the seconds of n steps, and 0 with peak MB."""
    try:
        step = our_step(sizes) if name == "ours" else torch_step(sizes, name == "torch_compile")
        step()
    except Exception as error:  # such as no compiler for torch.compile: the others still run
        pipe.send(f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}")
        return
    pipe.send("")
    while count := pipe.recv():
        begin, used = time.perf_counter(), cpu_seconds()
        for _ in range(count):
            step()
        pipe.send(((time.perf_counter() - begin) / count, (cpu_seconds() - used) / count))
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)


def cpu_seconds() -> float:
    """User and system seconds of all threads of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def our_step(sizes: dict[str, int]) -> Step:
    """Our compiled step, from new weights."""
    from benchmarks.peers import ours
    from ddm_jax.training.programs import release_freed_memory

    config, *made = ours.radd_parts(sizes)
    step = ours.our_step(config, *made, sizes["length"])
    release_freed_memory()  # as training/programs.py does
    state = step.start()

    def run() -> float:
        nonlocal state
        state, metrics = step.program(state, step.batch)
        return float(metrics["loss"])

    return run


def torch_step(sizes: dict[str, int], compile: bool) -> Step:
    """The step of benchmarks/peers/pytorch.py, in a process without jax."""
    import torch

    from benchmarks.peers.pytorch import Network, Trainer

    torch.manual_seed(0)
    model = Network(model_config(sizes), sizes["vocab"], sizes["length"])
    trainer = Trainer(model, sizes["vocab"], compile)
    given = torch.tensor(fixed_batch(sizes)[0]).long()
    return lambda: float(trainer.step(given))


def our_loss(sizes: dict[str, int]) -> tuple[float, Any]:
    """(t-DCE of `fixed_batch`, the weights as NumPy arrays)."""
    import jax
    import numpy as np

    from benchmarks.peers.ours import radd_parts
    from ddm_jax.objectives import radd

    _, process, _, network = radd_parts(sizes)
    params = network.init(jax.random.key(0))
    # new weights give all tokens the same probability; with this head losses can differ
    head = params["head"]
    head["kernel"] = 0.1 * jax.random.normal(jax.random.key(1), head["kernel"].shape)
    tokens, xt, t = fixed_batch(sizes)
    batch = {"tokens": tokens, "valid": tokens >= 0}
    out = radd.t_dce_at(network.apply, params, batch, xt, t, process)
    return float(out.loss.sum() / tokens.size), jax.tree.map(np.array, params)


def torch_loss(sizes: dict[str, int], params: Any) -> float:
    """t-DCE of `fixed_batch` by PyTorch's network with our weights."""
    from benchmarks.peers.pytorch import loss_at, with_our_weights

    model = with_our_weights(params, model_config(sizes), sizes["vocab"], sizes["length"])
    return loss_at(model, *fixed_batch(sizes))


def model_config(sizes: dict[str, int]) -> ModelConfig:
    """The network of these sizes."""
    return ModelConfig(**{name: sizes[name] for name in ("width", "depth", "heads")})


def fixed_batch(sizes: dict[str, int]) -> tuple[Any, Any, Any]:
    """(tokens, xt, t) as NumPy arrays; about half of the tokens are masked."""
    import numpy as np

    rng = np.random.default_rng(0)
    tokens = rng.integers(0, sizes["vocab"], (sizes["batch"], sizes["length"])).astype(np.int32)
    t = rng.uniform(0.1, 1, len(tokens)).astype(np.float32)
    xt = np.where(rng.random(tokens.shape) < t[:, None], sizes["vocab"], tokens).astype(np.int32)
    return tokens, xt, t


if __name__ == "__main__":
    app.run(main)
