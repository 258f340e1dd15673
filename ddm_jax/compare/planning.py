"""--plan: what a comparison will run, how long it may take, and whether it fits other machines."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from ddm_jax.compare.cells import Cell, expected_seconds, seconds_of
from ddm_jax.errors import UserError
from ddm_jax.wording import counted

TO_RUN, FINISHED = "to run", "finished"


@dataclass(frozen=True)
class PlannedCell:
    """A row of the plan.

    Attributes:
      cell: its name.
      steps: of training; None if its config is invalid.
      state: TO_RUN, FINISHED, or why it will fail.
      seconds: that it will take; None if not known.
      source: what `seconds` comes from, in words.
    """

    cell: str
    steps: int | None
    state: str
    seconds: float | None
    source: str

    def to_json(self) -> dict[str, Any]:
        """The row as one JSON object."""
        return {
            "cell": self.cell,
            "steps": self.steps,
            "state": self.state,
            "seconds": self.seconds,
            "from": self.source,
        }


@dataclass(frozen=True)
class AotAnswer:
    """What ddm_jax.aot says of an objective under a layout: its JSON, or why it failed."""

    objective: str
    layout: str
    result: Mapping[str, Any] | None
    mistake: str = ""

    def to_json(self) -> dict[str, Any]:
        """The answer as one JSON object."""
        about = {"objective": self.objective, "layout": self.layout}
        if self.result is None:
            return about | {"mistake": self.mistake}
        return about | {"verdict": self.result}


def plan_cells(cells: Sequence[Cell], step_s: float | None) -> list[PlannedCell]:
    """A row for each cell.

    Args:
      cells: of the comparison.
      step_s: seconds of a step; None to estimate from the cells that have run.
    """
    known = seconds_of(cells)
    return [_plan_cell(cell, cells, known, step_s) for cell in cells]


def _plan_cell(
    cell: Cell, cells: Sequence[Cell], known: Mapping[str, float], step_s: float | None
) -> PlannedCell:
    try:
        steps = cell.require_config().train.steps
        finished = cell.is_finished()
    except UserError as error:
        known_steps = cell.config.train.steps if cell.config else None
        return PlannedCell(cell.name, known_steps, f"will fail: {error}", None, "unknown")
    if finished:
        return PlannedCell(cell.name, steps, FINISHED, 0.0, "done")
    if step_s is not None:
        source = "steps x --step_s, without startup and compilation"
        return PlannedCell(cell.name, steps, TO_RUN, steps * step_s, source)
    seconds = expected_seconds(cell, known, cells)
    if seconds is None:
        return PlannedCell(cell.name, steps, TO_RUN, None, "unknown")
    same_layout = any(c.name in known and c.layout == cell.layout for c in cells)
    source = "finished cells of its layout" if same_layout else "finished cells"
    return PlannedCell(cell.name, steps, TO_RUN, seconds, source)


def plan_text(rows: Sequence[PlannedCell], at_once: int) -> str:
    """The plan, one line for each cell, with the total.

    Args:
      rows: of `plan_cells`.
      at_once: cells that will run at the same time.
    """
    width = max(len(row.cell) for row in rows)
    lines = [
        f"{row.cell:<{width}}  {row.steps or '-':>8} steps  {_time(row.seconds):>8}  {row.state}"
        for row in rows
    ]
    left = [row for row in rows if row.state == TO_RUN]
    seconds = [row.seconds for row in left if row.seconds is not None]
    total = f"{counted(len(rows), 'cell')}, {len(left)} to run"
    if left and len(seconds) == len(left):
        sources = ", ".join(sorted({row.source for row in left}))
        about = _time(sum(seconds) / at_once)
        total += f", about {about} with {at_once} at once (from {sources})"
    elif left:
        total += ", time unknown: no cell has run yet; give --step_s, or run some cells"
    return "\n".join([*lines, total])


def ask_aot(cells: Sequence[Cell], topology: str) -> list[AotAnswer]:
    """Runs ddm_jax.aot for each objective and layout in turn, and prints a line for each.

    Args:
      cells: of the comparison; seeds make no difference.
      topology: TPUs or GPUs to compile for, such as "v5e:4x4".
    """
    answers = []
    for cell in {(c.objective, c.layout): c for c in reversed(cells)}.values():
        fields = {k: v for k, v in cell.changes.items() if k != "layout.name"}
        where = [f"--topology={topology}", f"--layout={cell.layout}", "--json"]
        command = [sys.executable, "-m", "ddm_jax.aot", *cell.recipe.flags(fields), *where]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            result = json.loads(done.stdout.splitlines()[-1])
            answer = AotAnswer(cell.objective, cell.layout, result)
        else:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            mistake = said[-1].removeprefix("error: ")
            answer = AotAnswer(cell.objective, cell.layout, None, mistake)
        answers.append(answer)
        print(f"{topology} {cell.objective} {cell.layout}: {in_words(answer)}", flush=True)
    return answers


def in_words(answer: AotAnswer) -> str:
    """An answer of `ask_aot` in one line."""
    found = answer.result
    if found is None:
        return answer.mistake
    sizes = f"{found['need_gib']:.2f} of {found['available_gib']:.2f} GiB per device"
    if not found["fits"]:
        return f"does not fit: needs {sizes}"
    speed = f", a step takes at least {1e3 * found['step_s']:.1f} ms" if "step_s" in found else ""
    return f"fits: {sizes}{speed}"


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else tqdm.format_interval(seconds)
