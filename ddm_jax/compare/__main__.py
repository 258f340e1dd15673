"""Trains objectives x layouts x seeds and makes one page of them.

    python -m ddm_jax.compare --config=configs/compare_tiny.py --workdir=work/compare --devices=8

Every cell is an ordinary run; the same command goes on after an interruption. The page,
report.html, opens from disk; report.json has its numbers.
"""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import config_flags

from ddm_jax import cli
from ddm_jax.compare import planning
from ddm_jax.compare import samples as texts
from ddm_jax.compare.cells import Cell, Recipe, plan, suffix, write_cell
from ddm_jax.compare.page import render
from ddm_jax.compare.report import make_report
from ddm_jax.compare.results import FAILED, FINISHED, find, read_run
from ddm_jax.compare.running import run_cells
from ddm_jax.compare.summary import labelled, order_of_layouts
from ddm_jax.config import lookup
from ddm_jax.data.open import open_or_prepare
from ddm_jax.errors import UserError
from ddm_jax.parallel import processes
from ddm_jax.parallel.layouts import LAYOUTS
from ddm_jax.runs.files import write_atomically

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    cli.define_config()
    flags.DEFINE_string("workdir", "", "folder of all cells and of the page")
    flags.DEFINE_list(
        "objectives",
        ["radd_t_dce", "udlm:model.time=adaln", "ar"],
        "to train; NAME:FIELD=VALUE sets fields of the config for one of them",
    )
    flags.DEFINE_list("layouts", ["dp", "fsdp", "tp"], "the first is the reference")
    flags.DEFINE_list("seeds", ["0", "1"], "to train each with")
    flags.DEFINE_integer("steps", None, "config.train.steps; the recipe's by default")
    flags.DEFINE_integer("devices", None, "run on so many virtual CPU devices")
    flags.DEFINE_integer("jobs", 1, "cells at once; more than 1 and they slow each other down")
    flags.DEFINE_multi_string(
        "from", [], "make the page of these work directories, and train nothing; may be repeated"
    )
    flags.DEFINE_bool("plan", False, "say what would run and how long, and run nothing")
    flags.DEFINE_float("step_s", None, "with --plan: seconds of a step, if you know them")
    flags.DEFINE_string("topology", "", "with --plan: TPUs to compile for, as ddm_jax.aot")
    flags.DEFINE_integer("samples", 64, "texts of each objective; 0: none")
    flags.DEFINE_list("sample_steps", ["4", "8", "16", "32"], "of the samplers")
    flags.DEFINE_string(
        "judge", "auto", "of the texts: a --judge of ddm_jax.evaluate; auto: an ar cell; none"
    )
    flags.DEFINE_bool(
        "cells_only", False, "make no page: for every process of a pod; --from makes it afterwards"
    )
    cli.define_json()


def main(argv: Sequence[str]) -> None:
    """Runs what is missing and makes the page.

    Raises:
      UserError: a bad flag or recipe, data that is not there, or nothing to make a page of.
    """
    del argv
    seeds, steps = _whole("seeds", low=0), _whole("sample_steps", low=1)
    for name, low in (("jobs", 1), ("devices", 1), ("samples", 0), ("steps", 1)):
        value = FLAGS[name].value
        if value is not None and value < low:
            raise UserError(f"--{name}={value} is out of range: give at least {low}.")
    if FLAGS.devices is not None:
        jax.config.update("jax_platforms", "cpu")  # the cells' too: they have no other device
    workdirs = [Path(name).expanduser() for part in FLAGS["from"].value for name in part.split(",")]
    if not FLAGS.workdir and not workdirs and not FLAGS.plan:
        raise UserError("--workdir is missing: give a folder for the runs and the page.")
    workdir = Path(FLAGS.workdir or "work/compare").expanduser()
    if workdirs:
        _page(find(workdirs), workdir, steps, draws=True)
        return
    cells = _cells(workdir, seeds)
    if FLAGS.plan:
        _show_plan(cells)
        return
    _check_alone()
    settled = next((cell.config for cell in cells if cell.config), None)
    if settled is None:
        raise UserError(cells[0].mistake)
    open_or_prepare(settled.data)  # now, rather than by all cells at once
    for cell in cells:
        if not cell.folder.exists():
            write_cell(cell)
    ended = run_cells(cells, FLAGS.jobs)
    if not FLAGS.cells_only:
        _page([cell.folder for cell in cells], workdir, steps, draws=ended)
    if not ended:
        print("Stopped and saved: the same command goes on.")


def _cells(workdir: Path, seeds: Sequence[int]) -> list[Cell]:
    cli.read_config(FLAGS.config)
    for layout in FLAGS.layouts:
        lookup(LAYOUTS, layout, "--layouts")
    holder = FLAGS["config"]
    recipe = Recipe(holder.config_filename, config_flags.get_override_values(holder), FLAGS.devices)
    own = suffix() if FLAGS.cells_only else ""
    return plan(
        FLAGS.config, recipe, *map(_unique, (FLAGS.objectives, FLAGS.layouts, seeds)),
        FLAGS.steps, workdir, own,
    )  # fmt: skip


def _show_plan(cells: Sequence[Cell]) -> None:
    rows = planning.plan_of(cells, FLAGS.step_s)
    print(planning.table(rows, FLAGS.jobs), flush=True)
    found = planning.verdicts(cells, FLAGS.topology) if FLAGS.topology else []
    if FLAGS.json:
        print(json.dumps({"cells": rows, "verdicts": found}))


def _page(folders: Sequence[Path], workdir: Path, steps: Sequence[int], draws: bool) -> None:
    """Writes report.json and report.html. draws: texts too, unless a signal comes."""
    runs = labelled([read_run(folder) for folder in folders])
    first = FLAGS.layouts if FLAGS["layouts"].present else []
    layouts = order_of_layouts(runs, first or ([] if FLAGS["from"].value else FLAGS.layouts))
    drawn = None
    if draws and FLAGS.samples and (chosen := texts.writers(runs, layouts)):
        judge = texts.choose_judge(FLAGS.judge, chosen)
        try:
            drawn = texts.draw(chosen, FLAGS.samples, steps, judge, workdir / "samples")
        except texts.Stopped:
            print("Stopped and saved before all texts were drawn: the same command goes on.")
    report = make_report(
        runs, layouts, drawn, shlex.join(["python", "-m", "ddm_jax.compare", *sys.argv[1:]])
    )
    workdir.mkdir(parents=True, exist_ok=True)
    write_atomically(workdir / "report.json", json.dumps(report) + "\n")
    page = workdir / "report.html"
    write_atomically(page, render(report))
    for run in runs:
        if run.state == FAILED:
            print(f"{run.label}, {run.layout}, seed {run.seed}: {run.reason}")
    finished = sum(run.state == FINISHED for run in runs)
    print(f"{finished} of {len(runs)} runs finished. The page: {page.resolve()}")
    if FLAGS.json:
        result = {"page": str(page), "report": str(workdir / "report.json")}
        print(json.dumps(result | {k: report[k] for k in ("counts", "objectives", "costs")}))


def _check_alone() -> None:
    """One process makes the page: of several, all run the cells."""
    several = processes.multiprocess_variable(os.environ)
    if several and not FLAGS.cells_only:
        raise UserError(
            f"{several} says that there are several processes, which cannot all make the page: "
            f"add --cells_only, and then make it in one, with --from={FLAGS.workdir}."
        )


def _whole(name: str, low: int) -> list[int]:
    values = FLAGS[name].value
    if not values or not all(x.isdigit() and int(x) >= low for x in values):
        raise UserError(
            f"--{name}={','.join(values)} is not a list of whole numbers of at least {low}: give "
            f"such as --{name}={low},{low + 1}."
        )
    return [int(x) for x in values]


def _unique(values: Sequence) -> list:
    return list(dict.fromkeys(values))


if __name__ == "__main__":
    cli.run(main, define_flags)
