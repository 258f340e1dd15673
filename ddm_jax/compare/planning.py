"""What a comparison will run, how long it may take, and whether it fits other machines."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from ddm_jax.compare.cells import Cell, expected_seconds, seconds_of
from ddm_jax.errors import UserError


def plan_of(cells: Sequence[Cell], step_s: float | None) -> list[dict[str, Any]]:
    """A row for each cell: name, steps, state, seconds (None: unknown) and where they come from.

    step_s: seconds of a step, given; None to go by the cells that have run.
    """
    known = seconds_of(cells)
    rows = []
    for cell in cells:
        state = "to run"
        try:
            if cell.mistake:
                raise UserError(cell.mistake)
            if cell.is_finished():
                state = "finished"
        except UserError as error:
            state = f"will fail: {error}"
        steps = cell.config.train.steps if cell.config else None
        seconds, source = None, "unknown"
        if state == "finished":
            seconds, source = 0.0, "done"
        elif state == "to run" and step_s is not None:
            seconds, source = steps * step_s, "steps x --step_s, without start and compiling"
        elif state == "to run" and (seconds := expected_seconds(cell, known, cells)) is not None:
            alike = any(c.name in known and c.layout == cell.layout for c in cells)
            source = "finished cells of its layout" if alike else "finished cells"
        rows.append(
            {"cell": cell.name, "steps": steps, "state": state, "seconds": seconds, "from": source}
        )
    return rows


def table(rows: Sequence[dict[str, Any]], at_once: int) -> str:
    """The plan, a line a cell, with the sum."""
    width = max(len(row["cell"]) for row in rows)
    lines = [
        f"{row['cell']:<{width}}  {row['steps'] or '-':>8} steps  {_time(row['seconds']):>8}  "
        f"{row['state']}"
        for row in rows
    ]
    left = [row for row in rows if row["state"] == "to run"]
    total = f"{len(rows)} cells, {len(left)} to run"
    if left and all(row["seconds"] is not None for row in left):
        seconds = sum(row["seconds"] for row in left) / at_once
        sources = ", ".join(sorted({row["from"] for row in left}))
        total += f", about {_time(seconds)} with {at_once} at once (from {sources})"
    elif left:
        total += ", time unknown: no cell has run yet; give --step_s, or run some"
    return "\n".join([*lines, total])


def verdicts(cells: Sequence[Cell], topology: str) -> list[dict[str, Any]]:
    """What ddm_jax.aot says of each objective and layout on TPUs that are not here, in turn.

    Prints a line for each. Rows have objective, layout and either `verdict`, the JSON of aot, or
    `mistake`, its sentence.
    """
    rows = []
    for cell in {(c.objective, c.layout): c for c in reversed(cells)}.values():
        fields = {k: v for k, v in cell.changes.items() if k != "layout.name"}
        where = [f"--topology={topology}", f"--layout={cell.layout}", "--json"]
        command = [sys.executable, "-m", "ddm_jax.aot", *cell.recipe.flags(fields), *where]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        row: dict[str, Any] = {"objective": cell.objective, "layout": cell.layout}
        if done.returncode == 0:
            row["verdict"] = json.loads(done.stdout.splitlines()[-1])
        else:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            row["mistake"] = said[-1].removeprefix("error: ")
        rows.append(row)
        print(f"{topology} {cell.objective} {cell.layout}: {in_words(row)}", flush=True)
    return rows


def in_words(row: dict[str, Any]) -> str:
    """One line on a row of `verdicts`."""
    if "mistake" in row:
        return row["mistake"]
    found = row["verdict"]
    sizes = f"{found['need_gib']:.2f} of {found['available_gib']:.2f} GiB a device"
    if not found["fits"]:
        return f"does not fit: needs {sizes}"
    speed = f", a step of {1e3 * found['step_s']:.1f} ms at best" if "step_s" in found else ""
    return f"fits: {sizes}{speed}"


def _time(seconds: float | None) -> str:
    return "?" if seconds is None else tqdm.format_interval(seconds)
