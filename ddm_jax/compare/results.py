"""A work directory -> what a page says of that run, finished or not.

Times are of training alone: the mean seconds of a step since the last log, summed up; compiling,
validating and saving are left out.
"""

import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddm_jax.compare.cells import read_cell
from ddm_jax.config import Config, resolve
from ddm_jax.data.sets.pairs import open_folder
from ddm_jax.errors import UserError
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.runs.files import read_metrics
from ddm_jax.runs.record import MAY_CHANGE
from ddm_jax.settle import settle

FINISHED, FAILED, UNFINISHED = "finished", "failed", "unfinished"


@dataclass(frozen=True)
class RunResult:
    """What a work directory holds.

    label: the objective, and what else sets it apart (`labelled`). state: FINISHED, FAILED or
    UNFINISHED, with the reason where it is not finished. train: (step, loss, seconds so far).
    validation: (step, nats per token, stderr, seconds so far). final: the last validation's line of
    metrics.jsonl. program: program.json, what the compiler says of the step. record: config.json.
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
    step: int
    steps: int
    train: tuple[tuple[int, float, float], ...] = ()
    validation: tuple[tuple[int, float, float, float], ...] = ()
    final: dict[str, float] | None = None
    step_s: float | None = None
    tokens_per_s: float | None = None
    estimates: str = ""
    unigram: float | None = None
    program: dict[str, Any] | None = None
    record: dict[str, Any] | None = None
    at_once: int = 1

    @property
    def key(self) -> tuple[str, str, int]:
        """What sets it apart in a comparison."""
        return self.label, self.layout, self.seed


def find(workdirs: Sequence[Path]) -> list[Path]:
    """The runs of some work directories: of comparisons, all their cells.

    Raises:
      UserError: there is no run in one of them.
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


def read_run(folder: Path) -> RunResult:
    """All that a folder says, whether its run has begun, ended or failed.

    Raises:
      UserError: its config.json is not the record of a run.
    """
    cell = read_cell(folder)
    path = folder / "config.json"
    if not path.exists():
        return RunResult(
            folder,
            *(cell[name] for name in ("objective", "layout", "seed", "objective")),
            state=FAILED if "reason" in cell else UNFINISHED,
            reason=cell.get("reason", "has not begun"),
            command=cell["command"],
            step=0,
            steps=0,
        )
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        config = settle(resolve(ConfigDict(record["config"])))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the record of a run ({error}): give another.") from error
    metrics = read_metrics(folder / "metrics.jsonl")
    logs = [r for r in metrics if "step_s" in r]
    checks = [r for r in metrics if "nll" in r]
    clock = _clock(logs)
    step, steps = max((int(r["step"]) for r in metrics), default=0), config.train.steps
    finished = bool(checks) and checks[-1]["step"] >= steps
    reason = "" if finished else cell.get("reason", f"at step {step} of {steps}")
    state = FINISHED if finished else FAILED if "reason" in cell else UNFINISHED
    return RunResult(
        folder,
        config.objective.name,
        config.layout.name,
        config.seed,
        config.objective.name,
        state=state,
        reason=reason,
        command=cell.get("command", ""),
        step=step,
        steps=steps,
        train=tuple((int(r["step"]), r["loss"], _at(clock, r["step"])) for r in logs),
        validation=tuple(
            (int(r["step"]), r["nll"], r["stderr"], _at(clock, r["step"])) for r in checks
        ),
        final=checks[-1] if finished else None,
        step_s=statistics.median(r["step_s"] for r in logs) if logs else None,
        tokens_per_s=statistics.median(r["tokens_per_s"] for r in logs) if logs else None,
        estimates=OBJECTIVES[config.eval.estimator].estimates or "",
        unigram=_unigram(record),
        program=_read_json(folder / "program.json"),
        record=record,
        at_once=cell.get("at_once", 1),
    )


def config_of(run: RunResult) -> Config:
    """The settled config of a run that has one."""
    return settle(resolve(ConfigDict(run.record["config"])))


def differences(runs: Sequence[RunResult]) -> dict[str, dict[str, Any]]:
    """For each folder, the config fields in which runs of its objective differ from each other.

    Seed, layout, the number of steps and what no number depends on are left out.
    """
    flat = {str(run.folder): _decisive(run) for run in runs if run.record}
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


def _decisive(run: RunResult) -> dict[str, Any]:
    flat = {}
    for section, fields in run.record["config"].items():
        for name, value in fields.items() if isinstance(fields, dict) else ():
            flat[f"{section}.{name}"] = value
    free = (*MAY_CHANGE, "train.steps")
    return {
        name: value
        for name, value in flat.items()
        if not any(name == f or name.startswith(f + ".") for f in free)
    }


def _clock(logs: Sequence[dict[str, float]]) -> np.ndarray:
    """Seconds of training at each log: float64[2, n + 1], steps and seconds, from (0, 0)."""
    steps = [0, *(r["step"] for r in logs)]
    each = [
        (b - a) * r["step_s"] for (a, b), r in zip(itertools.pairwise(steps), logs, strict=True)
    ]
    return np.array([steps, [0.0, *itertools.accumulate(each)]])


def _at(clock: np.ndarray, step: float) -> float:
    """Seconds at a step; past the last log, at the pace of the last."""
    steps, seconds = clock
    if step <= steps[-1] or len(steps) < 2:
        return float(np.interp(step, steps, seconds))
    pace = (seconds[-1] - seconds[-2]) / (steps[-1] - steps[-2])
    return float(seconds[-1] + (step - steps[-1]) * pace)


def _unigram(record: dict[str, Any]) -> float | None:
    """Nats per token of a unigram model of the data; None where the data is gone."""
    try:
        return open_folder(Path(record["data"]["folder"])).unigram_entropy("validation")
    except (UserError, OSError, KeyError):
        return None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
