"""Writes metrics to metrics.jsonl and TensorBoard, and to wandb if a project is given."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ddm_jax.errors import UserError, how_to_install
from ddm_jax.runs.files import read_metrics, write_atomically


class Writers:
    """Writes each record everywhere.

    Records later than `step`, where a run resumes, are removed: the run writes them again.
    """

    def __init__(self, workdir: Path, step: int, wandb_project: str, config: Mapping[str, Any]):
        import tensorboardX  # slow to import, and only process 0 writes

        path = workdir / "metrics.jsonl"
        _keep_until(path, step)
        self._jsonl = path.open("a", encoding="utf-8")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir / "tensorboard"), purge_step=step + 1
        )
        self._wandb = _start_wandb(workdir, wandb_project, config) if wandb_project else None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Writes {"step": ..., name: value, ...}; values that are not finite are left out."""
        values = {name: float(v) for name, v in values.items() if math.isfinite(v)}
        self._jsonl.write(json.dumps({"step": step, **values}) + "\n")
        self._jsonl.flush()
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            self._wandb(values, step=step)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._jsonl.close()
        self._tensorboard.close()


def _keep_until(path: Path, step: int) -> None:
    """Removes the records that the run will write again, and a line torn by a kill."""
    if path.exists():
        kept = [json.dumps(r) + "\n" for r in read_metrics(path) if r["step"] <= step]
        write_atomically(path, "".join(kept))


def _start_wandb(workdir: Path, project: str, config: Mapping[str, Any]) -> Callable[..., None]:
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"config.train.wandb_project={project!r} needs wandb: {how_to_install('wandb')}, or "
            "leave the field empty."
        ) from error
    run = wandb.init(project=project, dir=str(workdir), config=dict(config), resume="allow")
    return run.log
