"""The cells of a comparison: what each trains, where, by which command, and how far it is.

A cell is an ordinary run in WORKDIR/cells/NAME. Beside what ddm_jax.main writes there, the folder
has log.txt, its output, and cell.json, what the comparison knows of it.
"""

import itertools
import json
import os
import re
import shlex
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ddm_jax.config import TYPE_WORDS, Config, field_type, lookup, resolve
from ddm_jax.errors import UserError
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.parallel.processes import BY_HAND
from ddm_jax.runs.checkpoint import folder_of
from ddm_jax.runs.files import read_metrics, write_atomically
from ddm_jax.runs.record import check_workdir
from ddm_jax.settle import settle

DEVICES_FLAG = "--xla_force_host_platform_device_count"


@dataclass(frozen=True)
class Recipe:
    """What all cells share: --config as given, its overrides by field, virtual CPU devices."""

    path: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    devices: int | None = None

    def environment(self) -> dict[str, str]:
        """The variables that a cell gets on top of those that there are."""
        if self.devices is None:
            return {}
        others = [
            flag
            for flag in os.environ.get("XLA_FLAGS", "").split()
            if not flag.startswith(DEVICES_FLAG)
        ]
        flags = " ".join([*others, f"{DEVICES_FLAG}={self.devices}"])
        return {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}

    def flags(self, changes: Mapping[str, Any]) -> list[str]:
        """--config and its overrides, those of `changes` last."""
        fields = {**self.overrides, **changes}
        return [f"--config={self.path}", *(f"--config.{k}={v}" for k, v in fields.items())]


@dataclass(frozen=True)
class Cell:
    """One run.

    config: settled, or None where `mistake` says why there is none. suffix: of the files that this
    process writes.
    """

    objective: str
    layout: str
    seed: int
    folder: Path
    recipe: Recipe
    changes: Mapping[str, Any]
    config: Config | None
    mistake: str = ""
    suffix: str = ""

    @property
    def name(self) -> str:
        """Unique within the comparison."""
        return self.folder.name

    @property
    def command(self) -> list[str]:
        """What trains it, as arguments."""
        flags = self.recipe.flags(self.changes)
        program = [sys.executable, "-m", "ddm_jax.main"]
        return [*program, *flags, f"--workdir={self.folder}", "--json"]

    @property
    def shown(self) -> str:
        """The same as one types it."""
        variables = [f"{k}={shlex.quote(v)}" for k, v in self.recipe.environment().items()]
        return " ".join([*variables, "python", shlex.join(self.command[1:])])

    def is_finished(self) -> bool:
        """Whether it has been trained, validated and saved to the end.

        Raises:
          UserError: its folder holds another run.
        """
        if self.config is None or check_workdir(self.folder, self.config) is None:
            return False
        steps = self.config.train.steps
        ended = [
            r["step"]
            for r in read_metrics(self.folder / "metrics.jsonl")
            if r["step"] >= steps and "nll" in r
        ]
        checkpoints = folder_of(self.folder, self.config.train)
        return any((checkpoints / str(step)).exists() for step in ended)


def suffix() -> str:
    """Of the files of this process, where several share the work directory (a pod)."""
    number = os.environ.get(BY_HAND[2]) or os.environ.get("SLURM_PROCID", "0")
    return f"-{socket.gethostname()}-{number}"


def write_cell(cell: Cell, **ended: Any) -> None:
    """Writes cell.json.

    ended: of a run that has stopped, its exit `code`, the `reason` why it failed, or how many
    `seconds` it took, in one go if `whole`, beside how many others (`at_once`).
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    known = {
        "objective": cell.objective,
        "layout": cell.layout,
        "seed": cell.seed,
        "command": cell.shown,
    }
    text = json.dumps(known | ended, indent=2) + "\n"
    write_atomically(cell.folder / f"cell{cell.suffix}.json", text)


def read_cell(folder: Path) -> dict[str, Any]:
    """What the newest cell.json of a folder says; nothing where there is none."""
    found = sorted(folder.glob("cell*.json"), key=lambda path: path.stat().st_mtime)
    return json.loads(found[-1].read_text(encoding="utf-8")) if found else {}


def seconds_of(cells: Sequence[Cell]) -> dict[str, float]:
    """Wall-clock seconds of the cells that ran from start to end in one go, by name."""
    known = {cell.name: read_cell(cell.folder) for cell in cells}
    return {name: x["seconds"] for name, x in known.items() if x.get("whole")}


def expected_seconds(cell: Cell, known: Mapping[str, float], cells: Sequence[Cell]) -> float | None:
    """Of a cell that has not run: the mean of those of its layout, else of all; None if none."""
    alike = [known[c.name] for c in cells if c.name in known and c.layout == cell.layout]
    alike = alike or list(known.values())
    return sum(alike) / len(alike) if alike else None


def parse_objective(entry: str) -> tuple[str, dict[str, Any]]:
    """`udlm:model.time=adaln:optim.lr=0.001` -> the name, and what it sets beside the recipe.

    Raises:
      UserError: there is no such objective or field, or a value of another type.
    """
    name, *settings = entry.split(":")
    lookup(OBJECTIVES, name, "--objectives")
    fields = {}
    for setting in settings:
        field_name, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--objectives={entry}: {setting!r} is not FIELD=VALUE of the config.")
        wanted = field_type(field_name)
        try:
            fields[field_name] = (
                {"true": True, "false": False}[text] if wanted is bool else wanted(text)
            )
        except (ValueError, KeyError) as error:
            raise UserError(
                f"--objectives={entry}: {setting!r} has the wrong type: give {TYPE_WORDS[wanted]}."
            ) from error
    return name, fields


def plan(
    config: ConfigDict,
    recipe: Recipe,
    objectives: Sequence[str],
    layouts: Sequence[str],
    seeds: Sequence[int],
    steps: int | None,
    workdir: Path,
    suffix: str = "",
) -> list[Cell]:
    """All cells: layouts of the first objective and seed first, so that a page has one early.

    config: the recipe with its overrides. objectives: see parse_objective. steps: None for the
    recipe's.

    Raises:
      UserError: an objective has a field that is unknown or of another type.
    """
    cells = []
    for seed, entry, layout in itertools.product(seeds, objectives, layouts):
        objective, fields = parse_objective(entry)
        changes = {"objective.name": objective, **fields, "layout.name": layout, "seed": seed}
        if steps is not None:
            changes["train.steps"] = steps
        name = re.sub(r"[^\w.=,-]", "_", entry.replace(":", ","))
        folder = workdir / "cells" / f"{name}-{layout}-{seed}"
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        settled, mistake = None, ""
        try:
            settled = settle(resolve(changed))
        except UserError as error:
            mistake = str(error)
        cells.append(
            Cell(objective, layout, seed, folder, recipe, changes, settled, mistake, suffix)
        )
    return cells
