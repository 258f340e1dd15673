"""From runs to answers: which objective models the text best, what a layout costs and changes.

Every function returns rows for report.json.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ddm_jax.compare.results import (
    FINISHED,
    RunResult,
    TrainPoint,
    ValidationPoint,
    differing_fields,
)
from ddm_jax.objectives.signature import PSEUDO
from ddm_jax.parallel.layouts import LAYOUTS

LIMIT = 1e-4  # on the relative difference of losses between layouts: what rounding may cause
Row = dict[str, Any]


def label_runs(runs: Sequence[RunResult]) -> list[RunResult]:
    """The runs with labels that distinguish them.

    A label is the objective, followed by the config fields in which runs of this objective differ;
    where that is not enough, by the folder.
    """
    fields = differing_fields(runs)
    labelled = []
    for run in runs:
        words = ", ".join(f"{k}={v}" for k, v in fields.get(str(run.folder), {}).items())
        label = f"{run.objective} ({words})" if words else run.objective
        labelled.append(dataclasses.replace(run, label=label))
    keys = [run.key for run in labelled]
    return [
        run
        if keys.count(run.key) == 1
        else dataclasses.replace(run, label=f"{run.label} [{run.folder}]")
        for run in labelled
    ]


def order_of_layouts(runs: Sequence[RunResult], first: Sequence[str] = ()) -> list[str]:
    """The layouts of the runs, the reference first: `first`, then dp, then as in LAYOUTS."""
    present = {run.layout for run in runs}
    return [name for name in dict.fromkeys([*first, "dp", *LAYOUTS]) if name in present]


def mean_and_spread(values: Sequence[float]) -> Row:
    """mean, sd (with n - 1; None for one value), min, max and n of some numbers."""
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def objective_rows(runs: Sequence[RunResult], layouts: Sequence[str]) -> list[Row]:
    """A row for each label with a finished run: the best first, pseudo-likelihoods last.

    Each seed counts once, under the first of the layouts that has finished it. `nll` is at equal
    steps, the largest number that all rows have reached; `nll_at_time` is at equal seconds of
    training, the smallest total of a row. Both interpolate linearly between validations, and are
    None before the first one.
    """
    chosen = _one_run_per_seed(runs, layouts)
    every = [run for some in chosen.values() for run in some]
    steps = min((run.validation[-1].step for run in every), default=0)
    seconds = min((_train_seconds(some) for some in chosen.values()), default=0.0)
    rows = []
    for label, some in chosen.items():
        by_step = [interpolate(_curve(run.validation, "step", "nll"), steps) for run in some]
        by_time = [interpolate(_curve(run.validation, "seconds", "nll"), seconds) for run in some]
        rows.append(
            {
                "label": label,
                "estimates": some[0].estimates,
                "layouts": sorted({run.layout for run in some}, key=layouts.index),
                "seeds": [run.seed for run in some],
                "steps": steps,
                "nll": _spread_if_known(by_step),
                "stderr": statistics.fmean(run.final["stderr"] for run in some),
                "bits_per_byte": mean_and_spread([run.final["bits_per_byte"] for run in some]),
                "seconds": seconds,
                "nll_at_time": _spread_if_known(by_time),
                "train_s": _train_seconds(some),
                "step_s": _mean(run.step_s for run in some),
                "unigram": some[0].unigram,
            }
        )

    def rank(row: Row) -> tuple[bool, float]:
        return row["estimates"] == PSEUDO, row["nll"]["mean"] if row["nll"] else math.inf

    return sorted(rows, key=rank)


def cost_rows(runs: Sequence[RunResult], layouts: Sequence[str]) -> list[Row]:
    """A row for each label and layout with timed steps: means over seeds.

    Each row has `step_s` (s), `tokens_per_s`, `ratio` (step time over that of the reference
    layout), `compile_s` (s), `peak_bytes` (memory of a device) and `collectives` (bytes that a
    device sends in a step, by kind). What is not known is None.
    """
    rows = []
    for label in dict.fromkeys(run.label for run in runs):
        timed = [run for run in runs if run.label == label and run.step_s]
        reference_s = _mean(run.step_s for run in timed if run.layout == layouts[0])
        for layout in layouts:
            found = [run for run in timed if run.layout == layout]
            step_s = _mean(run.step_s for run in found)
            if step_s is None:
                continue
            programs = [run.program for run in found if run.program]
            rows.append(
                {
                    "label": label,
                    "layout": layout,
                    "runs": len(found),
                    "step_s": step_s,
                    "tokens_per_s": _mean(run.tokens_per_s for run in found),
                    "ratio": step_s / reference_s if reference_s else None,
                    "compile_s": _mean_of(programs, lambda p: p["compile_s"]),
                    "peak_bytes": _mean_of(programs, lambda p: p["memory_bytes"]["peak"]),
                    "collectives": programs[0].get("collectives") if programs else None,
                }
            )
    return rows


def agreement_rows(runs: Sequence[RunResult], layouts: Sequence[str]) -> list[Row]:
    """The largest relative differences of losses between a layout and the reference.

    A row for each label, seed and other layout with logs at common steps. `loss` is over these
    logs; `nll` is over common validations, None if there are none; `steps` is the last step
    compared; `holds` says whether both are below LIMIT; `curve` is a list of (step, difference of
    the loss).
    """
    by_key = {run.key: run for run in runs}
    rows = []
    for run in runs:
        reference = by_key.get((run.label, layouts[0], run.seed))
        if reference is None or run.layout == layouts[0]:
            continue
        loss = relative_differences(
            _curve(run.train, "step", "loss"), _curve(reference.train, "step", "loss")
        )
        if not loss:
            continue
        nll = relative_differences(
            _curve(run.validation, "step", "nll"), _curve(reference.validation, "step", "nll")
        )
        most = max(difference for _, difference in loss)
        most_nll = max((difference for _, difference in nll), default=None)
        rows.append(
            {
                "label": run.label,
                "seed": run.seed,
                "layout": run.layout,
                "reference": layouts[0],
                "loss": most,
                "nll": most_nll,
                "steps": int(loss[-1][0]),
                "holds": max(most, most_nll or 0.0) < LIMIT,
                "curve": loss,
            }
        )
    return sorted(rows, key=lambda row: (row["label"], row["seed"], layouts.index(row["layout"])))


def relative_differences(curve: np.ndarray, reference: np.ndarray) -> list[tuple[float, float]]:
    """(x, |y - y_ref| / |y_ref|) at the x that both curves, float64[n, 2], have."""
    at = {x: y for x, y in reference}
    return [(float(x), float(abs(y - at[x]) / abs(at[x]))) for x, y in curve if x in at]


def interpolate(curve: np.ndarray, x: float) -> float | None:
    """The value of a curve, float64[n, 2], at x, linearly interpolated.

    After the last point it is the value of that point; before the first one it is None.
    """
    xs, ys = curve.T
    return None if x < xs[0] else float(np.interp(x, xs, ys))


def _one_run_per_seed(
    runs: Sequence[RunResult], layouts: Sequence[str]
) -> dict[str, list[RunResult]]:
    """For each label with finished runs, one run of each seed: that of the first layout."""
    chosen = {}
    for label in dict.fromkeys(run.label for run in runs):
        found = [r for r in runs if r.label == label and r.state == FINISHED and r.validation]
        found.sort(key=lambda run: layouts.index(run.layout))
        by_seed = {run.seed: run for run in reversed(found)}
        if by_seed:
            chosen[label] = [by_seed[seed] for seed in sorted(by_seed)]
    return chosen


def _train_seconds(runs: Sequence[RunResult]) -> float:
    return statistics.fmean(run.validation[-1].seconds for run in runs)


def _curve(points: Sequence[TrainPoint | ValidationPoint], x: str, y: str) -> np.ndarray:
    """float64[n, 2] of two fields of some points."""
    pairs = [(getattr(point, x), getattr(point, y)) for point in points]
    return np.array(pairs, np.float64).reshape(-1, 2)


def _spread_if_known(values: Sequence[float | None]) -> Row | None:
    known = [value for value in values if value is not None]
    return mean_and_spread(known) if len(known) == len(values) else None


def _mean(values: Iterable[float | None]) -> float | None:
    """The mean of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _mean_of(
    programs: Sequence[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], float]
) -> float | None:
    """The mean of a number in program.json; those that lack it are left out."""
    found = []
    for program in programs:
        try:
            found.append(float(read(program)))
        except (KeyError, TypeError, ValueError):
            continue
    return statistics.fmean(found) if found else None
