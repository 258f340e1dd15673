"""Reads a work directory: what the page shows of that run, whether finished or not.

Times are of training steps only: the mean seconds of a step since the previous log, summed up.
Compilation, validation and saving are left out.
"""

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from ddm_jax.compare.cells import CellRecord, read_cell
from ddm_jax.config import Config, resolve
from ddm_jax.data.sets.kinds import open_folder
from ddm_jax.errors import UserError
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.runs.files import read_metrics
from ddm_jax.runs.record import MAY_CHANGE
from ddm_jax.settle import settle

FINISHED, FAILED, UNFINISHED = "finished", "failed", "unfinished"


class TrainPoint(NamedTuple):
    """A log of training: the loss at a step, and seconds of training so far."""

    step: int
    loss: float
    seconds: float


class ValidationPoint(NamedTuple):
    """A validation: nats per token with their standard error, and seconds of training so far."""

    step: int
    nll: float
    stderr: float
    seconds: float


@dataclass(frozen=True)
class RunResult:
    """What a work directory holds.

    Attributes:
      folder: the work directory.
      objective: name.
      layout: name.
      seed: of the run.
      label: the objective, and what else distinguishes it (`label_runs`).
      state: FINISHED, FAILED or UNFINISHED.
      reason: why it is not finished; empty if it is.
      command: that trains it; empty if not known.
      step: last step in metrics.jsonl.
      steps: config.train.steps; 0 if it has not started.
      train: logs of training.
      validation: validations.
      final: the last validation's line of metrics.jsonl; empty unless finished.
      step_s: median over logs; None if there are none.
      tokens_per_s: likewise.
      estimates: what the validation number is, such as "an upper bound".
      unigram: nats per token of a unigram model of the data; None if the data is gone.
      program: program.json, the costs of the compiled step; empty if it is missing.
      record: config.json; empty if the run has not started.
      at_once: cells that ran at the same time.
    """

    folder: Path
    objective: str
    layout: str
    seed: int
    label: str
    state: str
    reason: str
    command: str
    step: int = 0
    steps: int = 0
    train: tuple[TrainPoint, ...] = ()
    validation: tuple[ValidationPoint, ...] = ()
    final: Mapping[str, float] = field(default_factory=dict)
    step_s: float | None = None
    tokens_per_s: float | None = None
    estimates: str = ""
    unigram: float | None = None
    program: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    at_once: int = 1

    @property
    def key(self) -> tuple[str, str, int]:
        """(label, layout, seed), which identifies the run in a comparison."""
        return self.label, self.layout, self.seed


def find_runs(workdirs: Sequence[Path]) -> list[Path]:
    """The folders of runs in some work directories; of a comparison, those of all its cells.

    Raises:
      UserError: one of them has no run.
    """
    found = []
    for workdir in workdirs:
        cells = sorted(path.parent for path in workdir.glob("cells/*/cell*.json"))
        if not cells and not (workdir / "config.json").exists():
            raise UserError(
                f"--from={workdir} holds neither a run (config.json) nor a comparison (cells/): "
                "give a --workdir of ddm_jax.main or of ddm_jax.compare."
            )
        found += cells or [workdir]
    return list(dict.fromkeys(found))


def read_result(folder: Path) -> RunResult:
    """What a folder says of its run, whether it has started, ended or failed.

    Raises:
      UserError: its config.json is not the record of a run.
    """
    cell = read_cell(folder)
    path = folder / "config.json"
    if cell and not path.exists():
        return _not_started(folder, cell)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        config = settle(resolve(ConfigDict(record["config"])))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is not the record of a run ({error}): give another folder."
        ) from error
    metrics = read_metrics(folder / "metrics.jsonl")
    logs = [r for r in metrics if "step_s" in r]
    checks = [r for r in metrics if "nll" in r]
    clock = _training_clock(logs)
    step, steps = max((int(r["step"]) for r in metrics), default=0), config.train.steps
    state, reason = FINISHED, ""
    if not checks or checks[-1]["step"] < steps:
        failure = cell.reason if cell else None
        state = UNFINISHED if failure is None else FAILED
        reason = f"at step {step} of {steps}" if failure is None else failure
    return RunResult(
        folder=folder,
        objective=config.objective.name,
        layout=config.layout.name,
        seed=config.seed,
        label=config.objective.name,
        state=state,
        reason=reason,
        command=cell.command if cell else "",
        step=step,
        steps=steps,
        train=tuple(TrainPoint(int(r["step"]), r["loss"], _at(clock, r["step"])) for r in logs),
        validation=tuple(
            ValidationPoint(int(r["step"]), r["nll"], r["stderr"], _at(clock, r["step"]))
            for r in checks
        ),
        final=checks[-1] if state == FINISHED else {},
        step_s=statistics.median(r["step_s"] for r in logs) if logs else None,
        tokens_per_s=statistics.median(r["tokens_per_s"] for r in logs) if logs else None,
        estimates=OBJECTIVES[config.eval.estimator].estimates or "",
        unigram=_unigram(record),
        program=_read_json(folder / "program.json"),
        record=record,
        at_once=(cell.at_once if cell else None) or 1,
    )


def config_of(run: RunResult) -> Config:
    """The settled config of a run that has started."""
    return settle(resolve(ConfigDict(run.record["config"])))


def differing_fields(runs: Sequence[RunResult]) -> dict[str, dict[str, Any]]:
    """For each folder, the config fields in which the runs of its objective differ.

    Seed, layout, the number of steps and fields that no result depends on are left out.
    """
    flat = {str(run.folder): _decisive_fields(run) for run in runs if run.record}
    objective = {str(run.folder): run.objective for run in runs}
    found = {}
    for folder, fields in flat.items():
        alike = [flat[f] for f in flat if objective[f] == objective[folder]]
        found[folder] = {
            name: value
            for name, value in fields.items()
            if any(other.get(name) != value for other in alike)
        }
    return found


def _not_started(folder: Path, cell: CellRecord) -> RunResult:
    return RunResult(
        folder=folder,
        objective=cell.objective,
        layout=cell.layout,
        seed=cell.seed,
        label=cell.objective,
        state=UNFINISHED if cell.reason is None else FAILED,
        reason="not started" if cell.reason is None else cell.reason,
        command=cell.command,
    )


def _decisive_fields(run: RunResult) -> dict[str, Any]:
    """The config fields, by section.name, that a result depends on."""
    flat = {}
    for section, fields in run.record["config"].items():
        for name, value in fields.items() if isinstance(fields, dict) else ():
            flat[f"{section}.{name}"] = value
    left_out = (*MAY_CHANGE, "train.steps")
    return {
        name: value
        for name, value in flat.items()
        if not any(name == f or name.startswith(f + ".") for f in left_out)
    }


def _training_clock(logs: Sequence[dict[str, float]]) -> np.ndarray:
    """Seconds of training at each log: float64[2, n + 1], steps and seconds, from (0, 0)."""
    steps = [0, *(r["step"] for r in logs)]
    each = [
        (b - a) * r["step_s"] for (a, b), r in zip(itertools.pairwise(steps), logs, strict=True)
    ]
    return np.array([steps, [0.0, *itertools.accumulate(each)]])


def _at(clock: np.ndarray, step: float) -> float:
    """Seconds at a step; after the last log, at the pace of that log."""
    steps, seconds = clock
    if step <= steps[-1] or len(steps) < 2:
        return float(np.interp(step, steps, seconds))
    pace = (seconds[-1] - seconds[-2]) / (steps[-1] - steps[-2])
    return float(seconds[-1] + (step - steps[-1]) * pace)


def _unigram(record: dict[str, Any]) -> float | None:
    """Nats per token of a unigram model of the data; None if the data is gone."""
    try:
        return open_folder(Path(record["data"]["folder"])).unigram_entropy("validation")
    except (UserError, OSError, KeyError):
        return None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found or {}
