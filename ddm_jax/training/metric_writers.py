"""Writes metrics to metrics.jsonl and TensorBoard, and to wandb if a project is given.

In metrics.jsonl the names are flat (loss, nll); elsewhere they have a group (train/loss, eval/nll).
"""

import json
import math
import secrets
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddm_jax.errors import UserError, how_to_install
from ddm_jax.runs.files import read_metrics, write_atomically

TRAIN, EVAL = "train", "eval"  # groups
TENSORBOARD = "tensorboard"
WANDB_ID = "wandb_id.txt"
_COLUMNS = 100  # of a sample in TensorBoard


class Writers:
    """Writes each record everywhere.

    Records later than `step`, where a run resumes, are removed: the run writes them again.
    """

    def __init__(self, workdir: Path, step: int, wandb_project: str, config: Mapping[str, Any]):
        """Opens the files.

        Raises:
          UserError: wandb is not installed, or refuses the project.
        """
        import tensorboardX  # slow to import, and only process 0 writes

        path = workdir / "metrics.jsonl"
        _keep_until(path, step)
        self._jsonl = path.open("a", encoding="utf-8")
        self._tensorboard = tensorboardX.SummaryWriter(
            str(workdir / TENSORBOARD), purge_step=step + 1
        )
        self._wandb = _Wandb(workdir, wandb_project, config) if wandb_project else None

    def write(self, step: int, values: Mapping[str, float], group: str) -> None:
        """Writes {"step": ..., name: value, ...}; values that are not finite are left out."""
        values = {name: float(v) for name, v in values.items() if math.isfinite(v)}
        self._jsonl.write(json.dumps({"step": step, **values}) + "\n")
        self._jsonl.flush()
        grouped = {f"{group}/{name}": value for name, value in values.items()}
        for name, value in grouped.items():
            self._tensorboard.add_scalar(name, value, step)
        if self._wandb:
            self._wandb.log(step, grouped)

    def write_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        """Writes (heading, text) of each sample as text, and to wandb as a table."""
        self._tensorboard.add_text("samples", _markdown(samples), step)
        if self._wandb:
            self._wandb.log_samples(step, samples)

    def close(self) -> None:
        """Flushes and closes the files."""
        self._jsonl.close()
        self._tensorboard.close()
        if self._wandb:
            self._wandb.close()


class _Wandb:
    """A run of wandb, which is the same one after each restart of the run in `workdir`."""

    def __init__(self, workdir: Path, project: str, config: Mapping[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise UserError(
                f"config.train.wandb_project={project!r} needs wandb: {how_to_install('wandb')}, "
                "or leave the field empty."
            ) from error
        self._table = wandb.Table
        try:
            self._run = wandb.init(
                project=project,
                dir=str(workdir),
                id=_kept_id(workdir / WANDB_ID),
                name=workdir.resolve().name,
                config=dict(config),
                resume="allow",
                allow_val_change=True,  # fields that may change when a run resumes
            )
        except wandb.Error as error:
            raise UserError(
                f"config.train.wandb_project={project!r} cannot be used ({error}): run `wandb "
                "login`, set WANDB_MODE=offline, or leave the field empty."
            ) from error

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Logs what wandb does not have from before a restart; the values would be the same."""
        if step >= self._run.step:
            self._run.log(dict(values), step=step)

    def log_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        rows = [[step, heading, text] for heading, text in samples]
        table = self._table(columns=["step", "sample", "text"], data=rows)
        self.log(step, {"samples": table})

    def close(self) -> None:
        self._run.finish()


def _kept_id(path: Path) -> str:
    """The content of the file, which is made with a random id if it is missing."""
    if not path.exists():
        write_atomically(path, secrets.token_hex(8))
    return path.read_text(encoding="utf-8").strip()


def _markdown(samples: Sequence[tuple[str, str]]) -> str:
    """Each text verbatim, in lines of _COLUMNS."""
    parts = []
    for heading, text in samples:
        lines: list[str] = []
        for line in text.splitlines():
            lines += textwrap.wrap(line, _COLUMNS) or [""]
        parts.append("\n".join([f"**{heading}**", "", *(f"    {line}" for line in lines)]))
    return "\n\n".join(parts)


def _keep_until(path: Path, step: int) -> None:
    """Removes the records that the run will write again, and a line torn by a kill."""
    if path.exists():
        kept = [json.dumps(r) + "\n" for r in read_metrics(path) if r["step"] <= step]
        write_atomically(path, "".join(kept))
