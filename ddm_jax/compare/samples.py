"""Texts that each objective writes, at several numbers of steps, and how good they are.

Of each, the run of the first seed under the reference layout writes, with its own sampler. What has
been drawn and judged is kept in files and is not done again.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from ddm_jax.compare.results import FINISHED, RunResult, config_of
from ddm_jax.data.sets.text import open_prepared
from ddm_jax.errors import UserError
from ddm_jax.evaluation.judges.judge import Judge
from ddm_jax.evaluation.judges.open import open_judge
from ddm_jax.evaluation.samples.quality import quality
from ddm_jax.evaluation.samples.unconditional import evaluate_samples
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.files import read_metrics, write_atomically
from ddm_jax.runs.run import open_run

SHOWN = 3  # texts of each that a page has
ONE_BY_ONE = ("autoregressive",)  # samplers that take as many steps as there are tokens


class Stopped(Exception):
    """A signal came before all was drawn; what there is, is kept."""


def writers(runs: Sequence[RunResult], layouts: Sequence[str]) -> list[RunResult]:
    """For each label the finished run of the first layout, and of that the lowest seed."""
    found = {}
    for run in sorted(runs, key=lambda r: (layouts.index(r.layout), r.seed)):
        if run.state == FINISHED:
            found.setdefault(run.label, run)
    labels = dict.fromkeys(run.label for run in runs)
    return [found[label] for label in labels if label in found]


def choose_judge(asked: str, runs: Sequence[RunResult]) -> str | None:
    """The --judge of open_judge: `auto` is the first of these runs that is autoregressive."""
    if asked == "none":
        return None
    if asked != "auto":
        return asked
    return next((str(run.folder) for run in runs if run.objective == "ar"), None)


def draw(
    runs: Sequence[RunResult], num: int, steps: Sequence[int], judge: str | None, folder: Path
) -> dict[str, Any]:
    """Draws `num` texts of each run at each number of steps, and scores them.

    judge: for open_judge, or None. folder: takes the draws and the scores.

    Returns:
      {"judge": its name or None, "num", "rows": [{label, sampler, steps, nfe, seconds (each),
      scores (sample_quality.quality), texts (the first few)}], "real": scores of held-out text,
      "failed": {label: reason}}.

    Raises:
      Stopped: Ctrl-C or SIGTERM came first.
      UserError: there is no such judge.
    """
    opened = _Judge(judge)
    rows, failed = [], {}
    for run in runs:
        config = config_of(run)
        if config.model.kind != "lm":
            failed[run.label] = "writes targets of sources: see ddm_jax.evaluate"
            continue
        each = [config.data.length] if config.sampler.name in ONE_BY_ONE else sorted(set(steps))
        try:
            rows += [_row(run, num, n, opened, folder) for n in each]
        except UserError as error:
            failed[run.label] = str(error)
    return {
        "judge": opened.name if rows else None,
        "num": num,
        "rows": rows,
        "real": _real(runs[0], num, opened, folder) if rows else None,
        "failed": failed,
    }


class _Judge:
    """A judge that is opened when it is first needed."""

    def __init__(self, spec: str | None):
        self.spec, self._judge = spec, None
        record = Path(spec, "metrics.jsonl") if spec else Path()
        # a run that has gone on since is another judge
        self.identity = [spec, read_metrics(record)[-1:] if record.is_file() else []]

    @property
    def name(self) -> str | None:
        """For the page."""
        return self.open().name if self.spec else None

    def open(self) -> Judge | None:
        """The judge, if there is to be one."""
        if self.spec and self._judge is None:
            self._judge = open_judge(self.spec)
        return self._judge


def _row(run: RunResult, num: int, steps: int, judge: _Judge, folder: Path) -> dict[str, Any]:
    def make() -> dict[str, Any]:
        print(f"Drawing {num} texts of {run.label} in {steps} steps", file=sys.stderr)
        layout = dp(jax.local_devices()[:1])
        found = evaluate_samples(
            open_run(run.folder, layout=layout), layout, num, steps, judge.open(), (), 0, folder,
            batch_size=min(16, num),
        )  # fmt: skip
        if found is None:
            raise Stopped
        return {
            "label": run.label,
            "sampler": found["sampler"],
            "steps": steps,
            "nfe": found["nfe"],
            "seconds": found["seconds"],
            "scores": found["samples"],
            "texts": [line["text"] for line in read_metrics(Path(found["path"]))[:SHOWN]],
        }

    about = [run.label, run.record["config"], run.final, num, steps]
    return _kept(folder, [*about, judge.identity], make)


def _real(run: RunResult, num: int, judge: _Judge, folder: Path) -> dict[str, Any]:
    """Scores of the first held-out blocks, whose tokens no model wrote."""
    data = run.record["data"]

    def make() -> dict[str, Any]:
        prepared = open_prepared(Path(data["folder"]))
        blocks = prepared.blocks("validation")
        tokens, valid = blocks.read(range(min(num, len(blocks))))
        rows = [row[seen] for row, seen in zip(tokens, valid, strict=True)]
        texts = [prepared.tokenizer.decode(row) for row in rows]
        scores = quality(texts, rows, judge.open(), prepared.tokenizer.fingerprint)
        return {"scores": scores, "texts": texts[:SHOWN]}

    return _kept(folder, [data, num, judge.identity], make)


def _kept(folder: Path, about: Any, make: Any) -> dict[str, Any]:
    """What `make` returned before, in a file named after what decides it."""
    text = json.dumps(about, sort_keys=True, default=str)
    path = folder / f"scores-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    made = json.loads(json.dumps(make(), default=float))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(made, indent=1) + "\n")
    return made
