"""All numbers of a comparison as one record, W/report.json, from which the page is made."""

import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from ddm_jax.compare.results import FAILED, FINISHED, RunResult
from ddm_jax.compare.summary import LIMIT, agreement, costs, objectives, order_of_layouts
from ddm_jax.evaluation.reports import to_json


def make_report(
    runs: Sequence[RunResult], layouts: Sequence[str], texts: dict[str, Any] | None, command: str
) -> dict[str, Any]:
    """The record, as JSON takes it: nan is None.

    runs: told apart (summary.labelled). layouts: the reference first. texts: of texts.draw.
    command: that made it.
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
            "notes": notes(runs),
            "objectives": objectives(runs, layouts),
            "costs": costs(runs, layouts),
            "agreement": agreement(runs, layouts),
            "texts": texts,
            "runs": [_run(run) for run in runs],
        }
    )


def notes(runs: Sequence[RunResult]) -> list[str]:
    """What a reader must know before comparing these runs."""
    begun = [run.record for run in runs if run.record]
    said = []
    data = {r["data"]["tokenizer"]["fingerprint"] + r["data"]["source_fingerprint"] for r in begun}
    if len(data) > 1:
        said.append(
            "These runs read different text or use different tokenizers: their nats per token do "
            "not compare, bits per byte do if the text is the same."
        )
    if len({str(r["versions"]) + r["git_revision"] for r in begun}) > 1:
        said.append("These runs were made by different versions of the code or of its packages.")
    if len({str(r["devices"]) for r in begun}) > 1:
        said.append("These runs had different devices: their times do not compare.")
    if (most := max((run.at_once for run in runs), default=1)) > 1:
        said.append(f"Up to {most} runs shared the machine: their times hold each other's.")
    return said


def machine() -> dict[str, Any]:
    """Where the page was made; the devices of each run are in its own record."""
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


def _run(run: RunResult) -> dict[str, Any]:
    record = run.record or {}
    return {
        **{
            name: getattr(run, name)
            for name in ("label", "objective", "layout", "seed", "state", "reason", "command")
        },
        "folder": str(run.folder),
        "step": run.step,
        "steps": run.steps,
        "final": run.final,
        "estimates": run.estimates,
        "step_s": run.step_s,
        "tokens_per_s": run.tokens_per_s,
        "train": [list(point) for point in run.train],
        "validation": [list(point) for point in run.validation],
        "program": run.program,
        **{name: record.get(name) for name in ("config", "versions", "git_revision", "devices")},
        "data": record.get("data"),
    }
