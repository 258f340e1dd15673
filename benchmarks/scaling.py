"""The tables of docs/scaling.md: recipes compiled ahead of time for TPUs, one after another.

    python -m benchmarks.scaling --out=work/scaling [--only=small] [--table]

Each row is a run of `python -m ddm_jax.aot`, which compiles for a minute or more; a row whose file
is already in --out is not compiled again. --table prints the existing rows. Weak scaling takes the
bytes and the time on a chip from these rows, and computes the network time for other numbers of
chips.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from ddm_jax.costs.chips import CHIPS
from ddm_jax.costs.collectives import Collective
from ddm_jax.costs.roofline import Place, network_seconds

_OUT = flags.DEFINE_string(
    "out", "work/scaling", "Folder of the results, a JSON file for each row."
)
_ONLY = flags.DEFINE_string("only", "", "Rows whose name contains this; all if empty.")
_TABLE = flags.DEFINE_bool("table", False, "Compile nothing.")

SPLASH = "--config.model.attention=splash"
SMALL = ("--config=configs/radd_small.py",)
MEDIUM = ("--config=configs/radd_medium.py",)
XL = (
    *MEDIUM,
    "--config.model.width=2048",
    "--config.model.heads=16",
    "--config.model.remat=full",
)
V5E_16 = (*SMALL, "--topology=v5e:4x4")
FOUR, EIGHT = (f"--config.train.microbatches={n}" for n in (4, 8))
V5P_8 = (*SMALL, "--topology=v5p:2x2x2", SPLASH)
V5E_256 = (*MEDIUM, "--topology=v5e:16x16", SPLASH)
GROUPS_OF_16 = ("--layout=hsdp", "--axes=data=16,fsdp=16")
ROWS = {
    "small-v5e_4x4-dp": (*V5E_16, SPLASH, FOUR, "--layout=dp"),
    "medium-v5e_16x16-dp": (*V5E_256, "--layout=dp"),
    "small-v5p_2x2x2-zero1": (*V5P_8, "--layout=zero1"),
    "small-v5e_4x4-tp": (*V5E_16, SPLASH, FOUR, "--layout=tp", "--axes=model=4"),
    "medium-v5e_16x16-hsdp": (*V5E_256, *GROUPS_OF_16),
    "small-v5p_2x2x2-dp": (*V5P_8, "--layout=dp"),
    "small-v5p_2x2x2-fsdp": (*V5P_8, "--layout=fsdp"),
    "small-v5e_4x4-fsdp_tp": (
        *V5E_16, SPLASH, FOUR, "--layout=fsdp_tp", "--axes=fsdp=4,model=4",
    ),
    "small-v5e_4x4-fsdp": (*V5E_16, SPLASH, FOUR, "--layout=fsdp"),
    "small-v5e_4x4-dp-plain": (*V5E_16, EIGHT, "--layout=dp"),
    "small-v5e_4x4-pmap-plain": (*V5E_16, EIGHT, "--layout=pmap"),
    "small-v5e_4x4-dp-full": (
        *V5E_16, "--config.train.microbatches=2", "--config.model.remat=full", "--layout=dp",
    ),
    "xl-v5e_16x16-hsdp": (*XL, "--topology=v5e:16x16", SPLASH, *GROUPS_OF_16),
    "xl-v5e_16x16-hsdp-2048": (
        *XL, "--config.train.batch_size=2048", "--topology=v5e:16x16", SPLASH, *GROUPS_OF_16,
    ),
}  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """Compiles the missing rows and prints the tables."""
    del argv
    folder = Path(_OUT.value)
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in ROWS if _ONLY.value in name]
    for name in names:
        file = folder / f"{name}.json"
        if file.exists() or _TABLE.value:
            continue
        command = [sys.executable, "-m", "ddm_jax.aot", *ROWS[name], "--json"]
        print(" ".join(command[1:]), file=sys.stderr, flush=True)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(done.stderr.splitlines()[-1], file=sys.stderr, flush=True)
        else:
            file.write_text(done.stdout.splitlines()[-1] + "\n")
    print(
        "| row | batch x micro | GiB a device | network | compute | memory | network | step | "
        "tokens/s | MFU |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    for name in names:
        file = folder / f"{name}.json"
        if file.exists():
            print(row(name, json.loads(file.read_text())))
    print("\n" + "\n".join(weak_scaling(folder)))


# v5e slices by their number of chips; above 256, several slices of 256
SLICES = {8: (2, 4), 16: (4, 4), 64: (8, 8), 256: (16, 16)}
WEAK = (8, 16, 64, 256, 512, 1024)
# name -> (the row with its bytes and its time on a chip, chips that share parameters)
MODELS = {
    "small": ("small-v5e_4x4-dp", 1),
    "medium": ("medium-v5e_16x16-dp", 1),
    "1.4B, 2 sequences a chip": ("xl-v5e_16x16-hsdp", 16),
    "1.4B, 8 sequences a chip": ("xl-v5e_16x16-hsdp-2048", 16),
}


def weak_scaling(folder: Path) -> list[str]:
    """Lines of Markdown: the share of a step that does not wait for the network."""
    lines = [
        f"| model | {' | '.join(f'{n:,} chips' for n in WEAK)} |",
        "|---|" + "---|" * len(WEAK),
    ]
    for name, (answer, group) in MODELS.items():
        file = folder / f"{answer}.json"
        if not file.exists():
            continue
        r = json.loads(file.read_text())
        busy = max(r["compute_s"], r["memory_s"])
        cells = [f"{busy / (busy + network(r, chips, group)):.0%}" for chips in WEAK]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def network(r: Mapping[str, Any], chips: int, group: int) -> float:
    """Seconds that the collectives of a row would take on another number of v5e chips.

    Args:
      r: the row.
      chips: number of chips.
      group: neighbouring chips that share parameters (all, if there are fewer); the others hold
        replicas.
    """
    slices = max(1, chips // 256)
    x, y = SLICES[chips // slices]
    where = [Place(s, (i, j, 0)) for s in range(slices) for i in range(x) for j in range(y)]
    shared = min(group, chips)
    sharing = tuple(tuple(range(i, i + shared)) for i in range(0, chips, shared))
    replicas = tuple(tuple(range(i, chips, shared)) for i in range(shared))
    seconds = 0.0
    for one in r["largest_collectives"]:
        sent, g = one["bytes"], one["group"]
        if group > 1 and one["stride"] == 1 and (g == group or one["kind"] == "collective-permute"):
            # a ring of permutations moves as much as a gather or a scatter
            n, kind, groups = sent / (group - 1) * group / shared, "all-gather", sharing
        elif one["kind"] == "all-reduce":
            n, kind, groups = sent * g / (2 * (g - 1)), "all-reduce", replicas
            groups = (tuple(range(chips)),) if g == r["devices"] else replicas
        else:
            raise ValueError(f"a collective that does not scale as expected: {one}")
        found = [Collective(kind, one["dtype"], n, groups, 1, "")] if len(groups[0]) > 1 else []
        seconds += network_seconds(found, where, CHIPS["v5e"])
    return seconds


def row(name: str, r: Mapping[str, Any]) -> str:
    """One line of Markdown."""
    batch = f"{r['batch_size']} x {r['microbatches']}"
    size = f"{r['need_gib']:.2f} of {r['available_gib']:.2f}"
    if not r["fits"]:
        return f"| {name} | {batch} | {size}: does not fit | | | | | | | |"
    times = [f"{1e3 * r[key]:.1f} ms" for key in ("compute_s", "memory_s", "network_s", "step_s")]
    return (
        f"| {name} | {batch} | {size} | {r['network_bytes'] / 1e6:,.0f} MB | {' | '.join(times)} | "
        f"{r['tokens_per_s']:,.0f} | {r['mfu']:.1%} |"
    )


if __name__ == "__main__":
    app.run(main)
