"""The benchmarks of a few minutes in short form, and how their ratios have changed.

    python -m benchmarks.run [--only=head,...] [--workdir=work/demo] [--check=0.8] [--json]

Each runs in a process of its own. A line is appended to the history: the time, the revision, and
every ratio_to_X, by the path of its key. Ratios compare two programs of one run, so they survive a
change of machine better than seconds do; they are still noisy if other programs run. With --check,
ratios below this share of the median of the last five lines are listed, and the exit code is 1; it
is also 1 if a benchmark fails. --workdir, a trained run, adds the estimators of the likelihood. The
other benchmarks need data or many minutes, and benchmarks.accelerator needs a GPU.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from ddm_jax import cli
from ddm_jax.config import lookup
from ddm_jax.runs.record import git_revision

SHORT = {
    "train_step": ("--rounds=5", "--steps=2", "--nocompile"),
    "head": ("--positions=1024", "--rounds=5"),
    "objectives": ("--only=sedd_absorb,sedd_uniform,mdlm,d3pm",),
    "sampling": ("--length=64", "--steps=64", "--depth=2"),
    "loader": (),
    "layouts": ("--devices=8", "--width=128", "--depth=2", "--length=64"),
}
TRAINED = {"estimators": ("--sequences=16", "--draws=4")}  # these need a run of a RADD objective
LAST = 5  # lines of the history that a ratio is compared with

_ONLY = flags.DEFINE_list("only", [], "Benchmarks to run; all if empty.")
_WORKDIR = flags.DEFINE_string("workdir", "", "A trained run of a RADD objective; optional.")
_HISTORY = flags.DEFINE_string(
    "history", "work/benchmarks.jsonl", "File to which a line is appended."
)
_CHECK = flags.DEFINE_float("check", 0.0, "Smallest allowed share of a ratio's median.")
_JSON = cli.define_json()


def main(argv: list[str]) -> None:
    """Runs the benchmarks, prints the ratios and their medians, and appends a line."""
    del argv
    history = Path(_HISTORY.value)
    before = read(history)
    now: dict[str, float] = {}
    failed = []
    chosen = dict(SHORT)
    if _WORKDIR.value:
        chosen |= {k: (*v, f"--workdir={_WORKDIR.value}") for k, v in TRAINED.items()}
    asked = {name: lookup(chosen, name, "--only") for name in _ONLY.value or chosen}
    for name, arguments in asked.items():
        command = [sys.executable, "-m", f"benchmarks.{name}", *arguments, "--json"]
        begin = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        print(f"{name} ({time.perf_counter() - begin:.0f} s)", flush=True)
        if done.returncode:
            failed.append(name)
            print(f"    failed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
            continue
        found = dict(ratios(json.loads(done.stdout.splitlines()[-1]), name))
        for key, value in found.items():
            usual = median(before, key)
            print(f"    {key:64} {value:7.2f}" + (f"  (usually {usual:.2f})" if usual else ""))
        now |= found
    fallen = [k for k, v in now.items() if v < _CHECK.value * (median(before, k) or 0)]
    record = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "revision": git_revision(),
    }
    record |= {"cpus": os.cpu_count(), "ratios": now}
    history.parent.mkdir(parents=True, exist_ok=True)
    with history.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    for key in fallen:
        print(f"{key} has fallen: {now[key]:.2f}, usually {median(before, key):.2f}")
    if _JSON.value:
        print(json.dumps(record | {"failed": failed, "fallen": fallen}))
    if failed or fallen:
        sys.exit(1)


def ratios(found: Any, path: str) -> Iterator[tuple[str, float]]:
    """(path, value) of every number in a nested record whose key starts with ratio_to_."""
    if isinstance(found, Mapping):
        for key, value in found.items():
            if key.startswith("ratio_to_"):
                yield f"{path}.{key}", float(value)
            else:
                yield from ratios(value, f"{path}.{key}")


def read(history: Path) -> list[dict[str, float]]:
    """The ratios of every line, the oldest first."""
    if not history.exists():
        return []
    lines = history.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["ratios"] for line in lines]


def median(before: list[dict[str, float]], key: str) -> float | None:
    """The median of a ratio over the last lines that have it; None if there are none."""
    known = [line[key] for line in before if key in line][-LAST:]
    return statistics.median(known) if known else None


if __name__ == "__main__":
    cli.run(main)
