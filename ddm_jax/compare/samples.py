"""Texts that each objective writes, at several numbers of steps, and their scores.

The run of the first seed under the reference layout writes for its objective, with its own
sampler. What has been drawn and scored is kept in files, and is not repeated.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from ddm_jax.compare.results import FINISHED, RunResult, config_of
from ddm_jax.data.sets.text import open_text
from ddm_jax.errors import UserError
from ddm_jax.evaluation.judges.judge import Judge
from ddm_jax.evaluation.judges.open import open_judge
from ddm_jax.evaluation.samples.quality import measure_quality
from ddm_jax.evaluation.samples.unconditional import evaluate_samples
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.files import read_metrics, write_atomically
from ddm_jax.runs.run import open_run, with_sampler
from ddm_jax.wording import counted

SHOWN = 3  # texts of each objective on the page
# samplers whose number of steps is the number of tokens
ONE_TOKEN_PER_STEP = ("autoregressive",)


class SamplingStopped(Exception):
    """A signal came before all texts were drawn; those that were drawn are kept."""


@dataclass(frozen=True)
class TextRequest:
    """Which texts to draw.

    Attributes:
      num: texts of each objective at each number of steps.
      steps: of the samplers.
      judge: of ddm_jax.evaluate; "auto" for the first autoregressive run; "none".
    """

    num: int
    steps: Sequence[int]
    judge: str = "auto"


def choose_writers(runs: Sequence[RunResult], layouts: Sequence[str]) -> list[RunResult]:
    """For each label, the finished run of the first layout, and of these the lowest seed."""
    found: dict[str, RunResult] = {}
    for run in sorted(runs, key=lambda r: (layouts.index(r.layout), r.seed)):
        if run.state == FINISHED:
            found.setdefault(run.label, run)
    labels = dict.fromkeys(run.label for run in runs)
    return [found[label] for label in labels if label in found]


def draw_texts(runs: Sequence[RunResult], request: TextRequest, folder: Path) -> dict[str, Any]:
    """Draws and scores texts of each run at each number of steps.

    Args:
      runs: one for each label (`choose_writers`).
      request: what to draw.
      folder: where the texts and scores are kept.

    Returns:
      {"judge": its name or None, "num", "rows": [{label, sampler, steps, nfe, seconds (per text),
      scores (samples.quality), texts (the first few)}], "real": scores of held-out text, "failed":
      {label: reason}}.

    Raises:
      SamplingStopped: Ctrl-C or SIGTERM came before all texts were drawn.
      UserError: the judge is unknown or cannot be opened.
    """
    judge = _LazyJudge(_judge_spec(request.judge, runs))
    rows: list[dict[str, Any]] = []
    failed = {}
    for run in runs:
        config = config_of(run)
        if config.model.kind != "lm":
            failed[run.label] = "it translates sources to targets: use ddm_jax.evaluate"
            continue
        steps = sorted(set(request.steps))
        if config.sampler.name in ONE_TOKEN_PER_STEP:
            steps = [config.data.length]
        try:
            rows += [_drawn_row(run, request.num, n, judge, folder) for n in steps]
        except UserError as error:
            failed[run.label] = str(error)
    return {
        "judge": judge.name if rows else None,
        "num": request.num,
        "rows": rows,
        "real": _real_row(runs[0], request.num, judge, folder) if rows else None,
        "failed": failed,
    }


def _judge_spec(asked: str, runs: Sequence[RunResult]) -> str | None:
    """What `open_judge` takes; None for no judge."""
    if asked == "none":
        return None
    if asked != "auto":
        return asked
    return next((str(run.folder) for run in runs if run.objective == "ar"), None)


class _LazyJudge:
    """A judge that is opened when it is first needed: kept scores do not need it."""

    def __init__(self, spec: str | None):
        self._spec = spec
        self._judge: Judge | None = None
        record = Path(spec, "metrics.jsonl") if spec else Path()
        # a run that has been trained further since is another judge
        self.identity = [spec, read_metrics(record)[-1:] if record.is_file() else []]

    @property
    def name(self) -> str | None:
        """For the page."""
        judge = self.open()
        return judge.name if judge else None

    def open(self) -> Judge | None:
        """The judge; None if there is none."""
        if self._spec and self._judge is None:
            self._judge = open_judge(self._spec)
        return self._judge


def _drawn_row(
    run: RunResult, num: int, steps: int, judge: _LazyJudge, folder: Path
) -> dict[str, Any]:
    """Scores of texts drawn by a run at a number of steps."""

    def make() -> dict[str, Any]:
        print(
            f"Drawing {counted(num, 'text')} of {run.label} in {counted(steps, 'step')}",
            file=sys.stderr,
        )
        layout = dp(jax.local_devices()[:1])
        opened = open_run(run.folder, layout=layout)
        config = with_sampler(opened.config, steps=steps)
        opened = dataclasses.replace(opened, config=config)
        found = evaluate_samples(opened, layout, num, folder, judge.open(), batch_size=min(16, num))
        if found is None:
            raise SamplingStopped
        return {
            "label": run.label,
            "sampler": found["sampler"],
            "steps": steps,
            "nfe": found["nfe"],
            "seconds": found["seconds"],
            "scores": found["samples"],
            "texts": [line["text"] for line in read_metrics(Path(found["path"]))[:SHOWN]],
        }

    key = [run.label, run.record["config"], run.final, num, steps, judge.identity]
    return _kept_or_made(folder, key, make)


def _real_row(run: RunResult, num: int, judge: _LazyJudge, folder: Path) -> dict[str, Any]:
    """Scores of the first held-out blocks of a run's data."""
    data = run.record["data"]

    def make() -> dict[str, Any]:
        prepared = open_text(Path(data["folder"]))
        blocks = prepared.records("validation")
        tokens, valid = blocks.read(range(min(num, len(blocks))))
        rows = [row[seen] for row, seen in zip(tokens, valid, strict=True)]
        texts = [prepared.tokenizer.decode(row) for row in rows]
        scores = measure_quality(texts, rows, judge.open(), prepared.tokenizer.fingerprint)
        return {"scores": scores, "texts": texts[:SHOWN]}

    return _kept_or_made(folder, [data, num, judge.identity], make)


def _kept_or_made(
    folder: Path, key: Sequence[Any], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """What `make` returned before for this key, from a file named by its hash; else calls it."""
    text = json.dumps(key, sort_keys=True, default=str)
    path = folder / f"scores-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    made = json.loads(json.dumps(make(), default=float))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(made, indent=1) + "\n")
    return made
