"""Trains objectives x layouts x seeds and makes one page of them.

    python -m ddm_jax.compare --config=compare_tiny --workdir=work/compare --devices=8
    python -m ddm_jax.compare --config=compare_tiny --plan

Every cell is an ordinary run; rerunning the command after an interruption resumes it. The page,
report.html, opens from disk; report.json has its numbers.
"""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags

from ddm_jax import cli
from ddm_jax.compare import planning
from ddm_jax.compare.cells import (
    Cell,
    Grid,
    RecipeFlags,
    make_cells,
    process_suffix,
    write_cell,
)
from ddm_jax.compare.making import PAGE, REPORT, make_page
from ddm_jax.compare.results import FAILED, FINISHED, find_runs
from ddm_jax.compare.running import run_cells
from ddm_jax.compare.samples import TextRequest
from ddm_jax.config import lookup
from ddm_jax.data.open import open_or_prepare
from ddm_jax.errors import UserError
from ddm_jax.parallel import processes
from ddm_jax.parallel.layouts import LAYOUTS
from ddm_jax.runs.interrupt import exit_code
from ddm_jax.wording import counted

FLAGS = flags.FLAGS
# flags of numbers, and the least that each may be
_LEAST = {"jobs": 1, "devices": 1, "samples": 0, "steps": 1}


def define_flags() -> None:
    """Defines the flags of this command."""
    with cli.group("What to train"):
        cli.define_config()
        flags.DEFINE_string("workdir", "", "folder of all cells and of the page")
        flags.DEFINE_list(
            "objectives",
            ["radd_t_dce", "udlm:model.time=adaln", "ar"],
            "objectives to train; NAME:FIELD=VALUE sets config fields for one of them",
        )
        flags.DEFINE_list("layouts", ["dp", "fsdp", "tp"], "layouts; the first is the reference")
        flags.DEFINE_list("seeds", ["0", "1"], "seeds to train each objective and layout with")
        flags.DEFINE_integer("steps", None, "config.train.steps; the recipe's by default")
        flags.DEFINE_integer("devices", None, "number of virtual CPU devices to run on")
        flags.DEFINE_integer("jobs", 1, "cells at once; more than 1 slow each other down")
        flags.DEFINE_multi_string(
            "from", [], "make the page of these work directories without training; may be repeated"
        )
        flags.DEFINE_bool(
            "cells_only",
            False,
            "make no page, for the processes of a pod; make it later with --from",
        )
    with cli.group("Plan"):
        flags.DEFINE_bool(
            "plan", False, "print what would run and for how long, without running it"
        )
        flags.DEFINE_float("step_s", None, "with --plan: seconds of a step, if you know them")
        flags.DEFINE_string(
            "topology", "", "with --plan: TPUs or GPUs to compile for, see ddm_jax.aot"
        )
    with cli.group("Texts on the page"):
        flags.DEFINE_integer("samples", 64, "texts to draw of each objective; 0 for none")
        flags.DEFINE_list("sample_steps", ["4", "8", "16", "32"], "steps of the samplers")
        flags.DEFINE_string(
            "judge",
            "auto",
            "judge of the texts: a --judge of ddm_jax.evaluate; auto (an ar cell); none",
        )
    cli.define_json()


def main(argv: Sequence[str]) -> int:
    """Runs the cells that are not finished, and makes the page.

    Returns:
      The exit code: 0, or that of the signal that stopped it.

    Raises:
      UserError: a bad flag or recipe, missing data, or no run to make a page of.
    """
    del argv
    seeds, sample_steps = _whole_numbers("seeds", 0), _whole_numbers("sample_steps", 1)
    for name, least in _LEAST.items():
        value = FLAGS[name].value
        if value is not None and value < least:
            raise UserError(f"--{name}={value} is out of range: give at least {least}.")
    if FLAGS.devices is not None:
        # this process draws the texts on the same kind of device as the cells
        jax.config.update("jax_platforms", "cpu")
    workdirs = [Path(name).expanduser() for part in _from() for name in part.split(",")]
    if not FLAGS.workdir and not workdirs and not FLAGS.plan:
        raise UserError("--workdir is missing: give a folder for the runs and the page.")
    workdir = Path(FLAGS.workdir or "work/compare").expanduser()
    texts = TextRequest(FLAGS.samples, sample_steps, FLAGS.judge) if FLAGS.samples else None
    if workdirs:
        _make_page(find_runs(workdirs), workdir, texts)
        return 0
    cells = _cells(workdir, seeds)
    if FLAGS.plan:
        _show_plan(cells)
        return 0
    _require_one_page_maker()
    finished = _run(cells)
    if not FLAGS.cells_only:
        _make_page([cell.folder for cell in cells], workdir, texts if finished else None)
    if finished:
        return 0
    print("Stopped and saved. Run the same command to resume.")
    return exit_code()


def _cells(workdir: Path, seeds: Sequence[int]) -> list[Cell]:
    cli.read_config(FLAGS.config)
    for layout in FLAGS.layouts:
        lookup(LAYOUTS, layout, "--layouts")
    holder: Any = FLAGS["config"]  # a flag of ml_collections, which has no types
    recipe = RecipeFlags(
        holder.config_filename, config_flags.get_override_values(holder), FLAGS.devices
    )
    objectives, layouts = _unique(FLAGS.objectives), _unique(FLAGS.layouts)
    grid = Grid(objectives, layouts, list(dict.fromkeys(seeds)), FLAGS.steps)
    return make_cells(
        FLAGS.config, recipe, grid, workdir, process_suffix() if FLAGS.cells_only else ""
    )


def _show_plan(cells: Sequence[Cell]) -> None:
    rows = planning.plan_cells(cells, FLAGS.step_s)
    print(planning.plan_text(rows, FLAGS.jobs), flush=True)
    answers = planning.ask_aot(cells, FLAGS.topology) if FLAGS.topology else []
    if FLAGS.json:
        result = {
            "cells": [row.to_json() for row in rows],
            "verdicts": [answer.to_json() for answer in answers],
        }
        print(json.dumps(result))


def _run(cells: Sequence[Cell]) -> bool:
    """Runs the cells; False if a signal stopped them."""
    valid = [cell.config for cell in cells if cell.config]
    if not valid:
        raise UserError(cells[0].config_error)
    open_or_prepare(valid[0].data)  # once, before all cells need it
    for cell in cells:
        if not cell.folder.exists():
            write_cell(cell)
    return run_cells(cells, FLAGS.jobs)


def _make_page(folders: Sequence[Path], workdir: Path, texts: TextRequest | None) -> None:
    """Makes the page and prints what is on it."""
    # the default of --layouts says nothing of runs from elsewhere
    by_default = _from() and not FLAGS["layouts"].present
    first_layouts = [] if by_default else FLAGS.layouts
    command = shlex.join(["python", "-m", "ddm_jax.compare", *sys.argv[1:]])
    report = make_page(folders, workdir, first_layouts, texts, command)
    for run in report["runs"]:
        if run["state"] == FAILED:
            print(f"{run['label']}, {run['layout']}, seed {run['seed']}: {run['reason']}")
    page, counts = workdir / PAGE, report["counts"]
    finished = f"{counts[FINISHED]} of {counted(counts['runs'], 'run')} finished"
    print(f"{finished}. The page: {page.resolve()}")
    if FLAGS.json:
        result = {"page": str(page), "report": str(workdir / REPORT)}
        print(json.dumps(result | {k: report[k] for k in ("counts", "objectives", "costs")}))


def _require_one_page_maker() -> None:
    """Raises UserError if several processes would make the page; all of them may run cells."""
    several = processes.multiprocess_variable(os.environ)
    if several and not FLAGS.cells_only:
        raise UserError(
            f"{several} says that there are several processes, which cannot all make the page: "
            f"add --cells_only, and make the page afterwards in one process, with "
            f"--from={FLAGS.workdir}."
        )


def _from() -> list[str]:
    """The values of --from, whose name is a keyword of Python."""
    return FLAGS["from"].value or []


def _whole_numbers(name: str, least: int) -> list[int]:
    values: list[str] = FLAGS[name].value or []
    if not values or not all(x.isdigit() and int(x) >= least for x in values):
        raise UserError(
            f"--{name}={','.join(values)} is not a list of whole numbers of at least {least}: give "
            f"for example --{name}={least},{least + 1}."
        )
    return [int(x) for x in values]


def _unique(values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(values))


if __name__ == "__main__":
    cli.run(main, define_flags)
