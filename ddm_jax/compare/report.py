"""All numbers of a comparison as one record, WORKDIR/report.json, from which the page is made."""

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from ddm_jax.compare.results import FAILED, FINISHED, RunResult
from ddm_jax.compare.summary import (
    LIMIT,
    agreement_rows,
    cost_rows,
    objective_rows,
    order_of_layouts,
)
from ddm_jax.evaluation.reports import to_json


def make_report(
    runs: Sequence[RunResult],
    layouts: Sequence[str],
    texts: Mapping[str, Any] | None,
    command: str,
) -> dict[str, Any]:
    """The record, ready for JSON: nan becomes None.

    Args:
      runs: with labels (summary.label_runs).
      layouts: the reference first.
      texts: of samples.draw_texts; None if no texts were drawn.
      command: that made the page.
    """
    layouts = order_of_layouts(runs, layouts)
    return to_json(
        {
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "command": command,
            "machine": machine(),
            "counts": {
                "runs": len(runs),
                **{s: sum(r.state == s for r in runs) for s in (FINISHED, FAILED)},
            },
            "labels": list(dict.fromkeys(run.label for run in runs)),
            "layouts": layouts,
            "limit": LIMIT,
            "notes": comparability_notes(runs),
            "objectives": objective_rows(runs, layouts),
            "costs": cost_rows(runs, layouts),
            "agreement": agreement_rows(runs, layouts),
            "texts": texts,
            "runs": [_run_row(run) for run in runs],
        }
    )


def comparability_notes(runs: Sequence[RunResult]) -> list[str]:
    """Warnings on differences between the runs that limit what can be compared."""
    records = [run.record for run in runs if run.record]
    said = []
    data = {
        r["data"]["tokenizer"]["fingerprint"] + r["data"]["source_fingerprint"] for r in records
    }
    if len(data) > 1:
        said.append(
            "These runs read different text or use different tokenizers: their nats per token are "
            "not comparable; bits per byte are, if the text is the same."
        )
    if len({str(r["versions"]) + r["git_revision"] for r in records}) > 1:
        said.append("These runs were made by different versions of the code or of its packages.")
    if len({str(r["devices"]) for r in records}) > 1:
        said.append("These runs had different devices: their times are not comparable.")
    if (most := max((run.at_once for run in runs), default=1)) > 1:
        said.append(f"Up to {most} runs shared the machine: their times include each other's.")
    return said


def machine() -> dict[str, Any]:
    """The machine that made the page; the devices of each run are in its own record."""
    return {
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _run_row(run: RunResult) -> dict[str, Any]:
    return {
        "label": run.label,
        "objective": run.objective,
        "layout": run.layout,
        "seed": run.seed,
        "state": run.state,
        "reason": run.reason,
        "command": run.command,
        "folder": str(run.folder),
        "step": run.step,
        "steps": run.steps,
        "final": run.final or None,
        "estimates": run.estimates,
        "step_s": run.step_s,
        "tokens_per_s": run.tokens_per_s,
        "train": [list(point) for point in run.train],
        "validation": [list(point) for point in run.validation],
        "program": run.program or None,
        "config": run.record.get("config"),
        "versions": run.record.get("versions"),
        "git_revision": run.record.get("git_revision"),
        "devices": run.record.get("devices"),
        "data": run.record.get("data"),
    }
