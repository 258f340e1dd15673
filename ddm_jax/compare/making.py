"""From work directories to the files of a comparison: report.json and report.html."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddm_jax.compare.page import render
from ddm_jax.compare.report import make_report
from ddm_jax.compare.results import RunResult, read_result
from ddm_jax.compare.samples import SamplingStopped, TextRequest, choose_writers, draw_texts
from ddm_jax.compare.summary import label_runs, order_of_layouts
from ddm_jax.runs.files import write_atomically

REPORT, PAGE = "report.json", "report.html"


def make_page(
    folders: Sequence[Path],
    workdir: Path,
    first_layouts: Sequence[str],
    request: TextRequest | None,
    command: str,
) -> dict[str, Any]:
    """Writes workdir/report.json and workdir/report.html; returns the report.

    Args:
      folders: of the runs.
      workdir: of the comparison.
      first_layouts: the reference first; layouts of the runs that are not named come after them.
      request: which texts to draw; None for none.
      command: that makes the page.

    Raises:
      UserError: a folder does not hold a run, or the judge cannot be opened.
    """
    runs = label_runs([read_result(folder) for folder in folders])
    layouts = order_of_layouts(runs, first_layouts)
    texts = _texts(runs, layouts, request, workdir / "samples")
    report = make_report(runs, layouts, texts, command)
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / REPORT, json.dumps(report) + "\n")
    write_atomically(workdir / PAGE, render(report))
    return report


def _texts(
    runs: Sequence[RunResult],
    layouts: Sequence[str],
    request: TextRequest | None,
    folder: Path,
) -> dict[str, Any] | None:
    if request is None or not (writers := choose_writers(runs, layouts)):
        return None
    try:
        return draw_texts(writers, request, folder)
    except SamplingStopped:
        print("Stopped and saved before all texts were drawn. Run the same command to resume.")
        return None
