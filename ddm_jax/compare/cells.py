"""The cells of a comparison: what each one trains, by which command, and whether it is finished.

A cell is an ordinary run in WORKDIR/cells/NAME. In addition to what ddm_jax.main writes there, the
folder has log.txt, its output, and cell.json, a `CellRecord`.
"""

import dataclasses
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

from ddm_jax.config import Config, field_type, lookup, resolve
from ddm_jax.config_fields import TYPE_WORDS
from ddm_jax.errors import UserError
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.parallel.processes import MANUAL_VARIABLES
from ddm_jax.runs.checkpoint import folder_of
from ddm_jax.runs.files import read_metrics, write_atomically
from ddm_jax.runs.record import check_workdir
from ddm_jax.settle import settle

DEVICES_FLAG = "--xla_force_host_platform_device_count"


@dataclass(frozen=True)
class RecipeFlags:
    """What the commands of all cells share.

    Attributes:
      path: --config as given.
      overrides: fields set by --config.FIELD=VALUE.
      devices: virtual CPU devices; None for the devices of the machine.
    """

    path: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    devices: int | None = None

    def environment(self) -> dict[str, str]:
        """The environment variables that a cell gets in addition to those of this process."""
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
        """--config and its overrides; `changes` take precedence."""
        fields = {**self.overrides, **changes}
        return [f"--config={self.path}", *(f"--config.{k}={v}" for k, v in fields.items())]


@dataclass(frozen=True)
class Grid:
    """The cells are all combinations of these.

    Attributes:
      objectives: NAME or NAME:FIELD=VALUE:..., see `parse_objective`.
      layouts: names of layouts.
      seeds: of the runs.
      steps: of training; None for the recipe's.
    """

    objectives: Sequence[str]
    layouts: Sequence[str]
    seeds: Sequence[int]
    steps: int | None = None


@dataclass(frozen=True)
class Cell:
    """One run of the comparison.

    Attributes:
      objective: its name.
      layout: its name.
      seed: of the run.
      folder: its work directory.
      recipe: what all cells share.
      changes: config fields that this cell sets.
      config: settled; None if `config_error` says why it is invalid.
      config_error: a sentence; empty if the config is valid.
      suffix: of the names of the files that this process writes in the folder.
    """

    objective: str
    layout: str
    seed: int
    folder: Path
    recipe: RecipeFlags
    changes: Mapping[str, Any]
    config: Config | None
    config_error: str = ""
    suffix: str = ""

    @property
    def name(self) -> str:
        """Unique within the comparison."""
        return self.folder.name

    @property
    def command(self) -> list[str]:
        """The program that trains it, and its arguments."""
        flags = self.recipe.flags(self.changes)
        program = [sys.executable, "-m", "ddm_jax.main"]
        return [*program, *flags, f"--workdir={self.folder}", "--json"]

    @property
    def shell_command(self) -> str:
        """The command and its environment as one types them in a shell."""
        variables = [f"{k}={shlex.quote(v)}" for k, v in self.recipe.environment().items()]
        return " ".join([*variables, "python", shlex.join(self.command[1:])])

    @property
    def log_file(self) -> Path:
        """Where its output goes."""
        return self.folder / f"log{self.suffix}.txt"

    def require_config(self) -> Config:
        """The settled config.

        Raises:
          UserError: it is invalid.
        """
        if self.config is None:
            raise UserError(self.config_error)
        return self.config

    def is_finished(self) -> bool:
        """Whether the last step has been trained, validated and saved.

        Raises:
          UserError: its folder holds another run.
        """
        if self.config is None or check_workdir(self.folder, self.config) is None:
            return False
        steps = self.config.train.steps
        validated = [
            r["step"]
            for r in read_metrics(self.folder / "metrics.jsonl")
            if r["step"] >= steps and "nll" in r
        ]
        checkpoints = folder_of(self.folder, self.config.train)
        return any((checkpoints / str(step)).exists() for step in validated)


@dataclass(frozen=True)
class CellRecord:
    """What cell.json says. The later fields are None until the cell has ended.

    Attributes:
      objective: its name.
      layout: its name.
      seed: of the run.
      command: as one types it.
      code: exit code.
      reason: why it failed.
      seconds: wall-clock time that its process took.
      whole: whether that process ran it from its first step to its last.
      at_once: cells that ran at the same time.
    """

    objective: str
    layout: str
    seed: int
    command: str
    code: int | None = None
    reason: str | None = None
    seconds: float | None = None
    whole: bool | None = None
    at_once: int | None = None


def make_cells(
    config: ConfigDict, recipe: RecipeFlags, grid: Grid, workdir: Path, suffix: str = ""
) -> list[Cell]:
    """All cells of a grid: each layout of the first objective and seed first.

    In this order a page of an interrupted comparison soon has all layouts.

    Args:
      config: the recipe with its overrides.
      recipe: the flags that gave it.
      grid: what to combine.
      workdir: of the comparison.
      suffix: see `Cell`.

    Raises:
      UserError: an objective sets a field that is unknown or has another type.
    """
    cells = []
    for seed, entry, layout in itertools.product(grid.seeds, grid.objectives, grid.layouts):
        objective, fields = parse_objective(entry)
        changes = {"objective.name": objective, **fields, "layout.name": layout, "seed": seed}
        if grid.steps is not None:
            changes["train.steps"] = grid.steps
        name = re.sub(r"[^\w.=,-]", "_", entry.replace(":", ","))
        folder = workdir / "cells" / f"{name}-{layout}-{seed}"
        changed = config.copy_and_resolve_references()
        changed.update_from_flattened_dict(changes)
        settled, config_error = None, ""
        try:
            settled = settle(resolve(changed))
        except UserError as error:
            config_error = str(error)
        cells.append(
            Cell(objective, layout, seed, folder, recipe, changes, settled, config_error, suffix)
        )
    return cells


def parse_objective(entry: str) -> tuple[str, dict[str, Any]]:
    """`udlm:model.time=adaln:optim.lr=0.001` -> the name, and the config fields that it sets.

    Raises:
      UserError: the objective or a field is unknown, or a value has another type.
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


def process_suffix() -> str:
    """The suffix of this process's files, where several share the work directory (a pod)."""
    number = os.environ.get(MANUAL_VARIABLES[2]) or os.environ.get("SLURM_PROCID", "0")
    return f"-{socket.gethostname()}-{number}"


def write_cell(
    cell: Cell,
    *,
    code: int | None = None,
    reason: str | None = None,
    seconds: float | None = None,
    whole: bool | None = None,
    at_once: int | None = None,
) -> None:
    """Writes cell.json; for the arguments see `CellRecord`."""
    cell.folder.mkdir(parents=True, exist_ok=True)
    record = CellRecord(
        objective=cell.objective,
        layout=cell.layout,
        seed=cell.seed,
        command=cell.shell_command,
        code=code,
        reason=reason,
        seconds=seconds,
        whole=whole,
        at_once=at_once,
    )
    known = {name: x for name, x in dataclasses.asdict(record).items() if x is not None}
    text = json.dumps(known, indent=2) + "\n"
    write_atomically(cell.folder / f"cell{cell.suffix}.json", text)


def read_cell(folder: Path) -> CellRecord | None:
    """The newest cell.json of a folder; None if there is none."""
    found = sorted(folder.glob("cell*.json"), key=lambda path: path.stat().st_mtime)
    return CellRecord(**json.loads(found[-1].read_text(encoding="utf-8"))) if found else None


def seconds_of(cells: Sequence[Cell]) -> dict[str, float]:
    """Wall-clock seconds, by name, of the cells that one process ran from start to end."""
    found = {}
    for cell in cells:
        record = read_cell(cell.folder)
        if record and record.whole and record.seconds is not None:
            found[cell.name] = record.seconds
    return found


def expected_seconds(cell: Cell, known: Mapping[str, float], cells: Sequence[Cell]) -> float | None:
    """The mean of the known seconds of cells of the same layout, else of all cells.

    None if no seconds are known.
    """
    alike = [known[c.name] for c in cells if c.name in known and c.layout == cell.layout]
    alike = alike or list(known.values())
    return sum(alike) / len(alike) if alike else None
