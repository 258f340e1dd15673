"""How a training step grows with length, width, depth and vocabulary: seconds, memory, FLOPs.

    python -m benchmarks.growth [--tokens=4096] [--picture=FILE.png] [--json]

RADD's t-DCE with AdamW; one field of the base changes at a time, and every batch has the same
number of tokens. FLOPs are those of the matmuls (costs/flops.py), with the head at half of the
positions, the share that is masked. Memory is what the compiler reserves in addition to the state.
Seconds are the median of --repeats steps, and comparable only if the machine does nothing else.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.peers.ours import our_step, radd_parts
from ddm_jax import cli
from ddm_jax.costs.flops import count
from ddm_jax.models.head import chunk_rows
from ddm_jax.models.network import padded_vocab

BASE = {"width": 256, "depth": 4, "heads": 8, "length": 256, "vocab": 8192}
GROWN = {
    "length": (256, 512, 1024, 2048, 4096),
    "width": (64, 128, 256, 512),
    "depth": (1, 2, 4, 8),
    "vocab": (2048, 8192, 16384, 50258),
}

_TOKENS = flags.DEFINE_integer(
    "tokens", 4096, "Tokens of a batch; a multiple of the longest length."
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 5, "Steps timed after a first one; their median is reported."
)
_PICTURE = flags.DEFINE_string("picture", "", "PNG file to draw.")
_JSON = cli.define_json()


def main(argv: list[str]) -> None:
    """Prints a row for each size."""
    del argv
    print("| grown | size | ms per step | GFLOP | GFLOP/s | MB besides the state |")
    print("|---|---|---|---|---|---|")
    base = measure(BASE)
    rows = []
    for name, sizes in GROWN.items():
        for size in sizes:
            found = base if BASE[name] == size else measure(BASE | {name: size})
            rows.append({"grown": name, "size": size, **found})
            rate = found["flops"] / found["step_s"] / 1e9
            print(
                f"| {name} | {size} | {1e3 * found['step_s']:.0f} | {found['flops'] / 1e9:.1f} "
                f"| {rate:.0f} | {found['temporary_bytes'] / 1e6:.0f} |",
                flush=True,
            )
    if _PICTURE.value:
        draw(rows, base, Path(_PICTURE.value))
    if _JSON.value:
        print(json.dumps(rows))


def measure(sizes: dict[str, int]) -> dict[str, float]:
    """step_s, flops and temporary_bytes of a step of these sizes."""
    batch = _TOKENS.value // sizes["length"]
    config, *made = radd_parts(sizes | {"batch": batch})
    ours = our_step(config, *made, sizes["length"])
    chunk = chunk_rows(_TOKENS.value, padded_vocab(sizes["vocab"]))
    chunks = -(-_TOKENS.value // 2 // chunk)
    flops = count(ours.step, jax.eval_shape(ours.start), ours.batch, while_trip_count=chunks)
    run = ours.turn(1)
    return {
        "step_s": statistics.median(run() for _ in range(_REPEATS.value)),
        "flops": flops,
        "temporary_bytes": ours.temporary_bytes,
    }


def draw(rows: list[dict[str, Any]], base: dict[str, float], path: Path) -> None:
    """A column for each field: seconds, the seconds expected from FLOPs, and memory."""
    figure = Figure(figsize=(3 * len(GROWN), 5), layout="constrained")
    above, below = figure.subplots(2, len(GROWN), sharey="row")
    for time_axes, memory_axes, name in zip(above, below, GROWN, strict=True):
        found = [row for row in rows if row["grown"] == name]
        sizes = [row["size"] for row in found]
        expected = [row["flops"] / base["flops"] * base["step_s"] for row in found]
        time_axes.loglog(sizes, [row["step_s"] for row in found], "k-o", label="measured")
        time_axes.loglog(sizes, expected, "k--", label="as the FLOPs of the base")
        memory_axes.loglog(sizes, [row["temporary_bytes"] / 1e6 for row in found], "k-s")
        memory_axes.set_xlabel(name)
        for axes in (time_axes, memory_axes):
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.xaxis.minorticks_off()
            axes.grid(color="#dddddd")
    for axes in (above[0], below[0]):
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.minorticks_off()
    above[0].set_ylabel("seconds per step")
    below[0].set_ylabel("MB besides the state")
    above[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    app.run(main)
