"""From runs to answers: which objective models the text best, what a layout costs and changes."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ddm_jax.compare.results import FINISHED, RunResult, differences
from ddm_jax.objectives.signature import PSEUDO
from ddm_jax.parallel.layouts import LAYOUTS

LIMIT = 1e-4  # of the relative difference of losses between layouts: what rounding may do


def labelled(runs: Sequence[RunResult]) -> list[RunResult]:
    """The runs, told apart: by objective, by the fields in which they differ, by folder at last."""
    apart = differences(runs)
    named = []
    for run in runs:
        fields = apart.get(str(run.folder), {})
        words = ", ".join(f"{k}={v}" for k, v in fields.items())
        named.append(dataclasses.replace(run, label=run.objective + (f" ({words})" * bool(words))))
    keys = [run.key for run in named]
    return [
        run
        if keys.count(run.key) == 1
        else dataclasses.replace(run, label=f"{run.label} [{run.folder}]")
        for run in named
    ]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """mean, sd (of n - 1, None for one value), min, max and n of some numbers."""
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "min": min(values),
        "max": max(values),
        "n": len(values),
    }


def order_of_layouts(runs: Sequence[RunResult], first: Sequence[str] = ()) -> list[str]:
    """The layouts that there are, the reference first: as given, else dp, else as in LAYOUTS."""
    wanted = dict.fromkeys([*first, "dp", *LAYOUTS])
    there = {run.layout for run in runs}
    return [name for name in wanted if name in there]


def objectives(runs: Sequence[RunResult], layouts: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each label with a finished run, the best first and pseudo-likelihoods last.

    Each seed counts once, under the first of the layouts that has finished it. `nll` is at equal
    steps, the most that all rows have; `nll_at_time` at equal seconds of training, the least that a
    row took; both by linear interpolation between validations, None before the first.
    """
    chosen = {}
    for label in dict.fromkeys(run.label for run in runs):
        found = [r for r in runs if r.label == label and r.state == FINISHED and r.validation]
        found.sort(key=lambda r: layouts.index(r.layout))
        by_seed = {r.seed: r for r in reversed(found)}
        if by_seed:
            chosen[label] = [by_seed[seed] for seed in sorted(by_seed)]
    every = [r for some in chosen.values() for r in some]
    steps = min((r.validation[-1][0] for r in every), default=0)
    seconds = min(
        (statistics.fmean(r.validation[-1][3] for r in some) for some in chosen.values()),
        default=0.0,
    )
    rows = []
    for label, some in chosen.items():
        by_step = [_curve(r, at=0, of=1) for r in some]
        by_time = [value(_curve(r, at=3, of=1), seconds) for r in some]
        final = [r.final for r in some]
        rows.append(
            {
                "label": label,
                "estimates": some[0].estimates,
                "layouts": sorted({r.layout for r in some}, key=layouts.index),
                "seeds": [r.seed for r in some],
                "steps": steps,
                "nll": _known([value(curve, steps) for curve in by_step]),
                "stderr": statistics.fmean(f["stderr"] for f in final),
                "bits_per_byte": spread([f["bits_per_byte"] for f in final]),
                "seconds": seconds,
                "nll_at_time": _known(by_time),
                "train_s": statistics.fmean(r.validation[-1][3] for r in some),
                "step_s": statistics.fmean(r.step_s for r in some),
                "unigram": some[0].unigram,
            }
        )

    def place(row: dict[str, Any]) -> tuple[bool, float]:
        return row["estimates"] == PSEUDO, row["nll"]["mean"] if row["nll"] else math.inf

    return sorted(rows, key=place)


def costs(runs: Sequence[RunResult], layouts: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each label and layout with a step that was timed: means over seeds.

    step_s: s. tokens_per_s. ratio: step time over that of the reference layout. compile_s: s.
    peak_bytes: memory of a device. collectives: bytes that a device sends in a step, by kind. None
    where it is not known.
    """
    rows = []
    for label in dict.fromkeys(run.label for run in runs):
        timed = [r for r in runs if r.label == label and r.step_s]
        for layout in layouts:
            found = [r for r in timed if r.layout == layout]
            if not found:
                continue
            programs = [r.program for r in found if r.program]
            step_s = statistics.fmean(r.step_s for r in found)
            rows.append(
                {
                    "label": label,
                    "layout": layout,
                    "runs": len(found),
                    "step_s": step_s,
                    "tokens_per_s": statistics.fmean(r.tokens_per_s for r in found),
                    "ratio": _ratio(step_s, [r for r in timed if r.layout == layouts[0]]),
                    "compile_s": _mean_of(programs, lambda p: p["compile_s"]),
                    "peak_bytes": _mean_of(programs, lambda p: p["memory_bytes"]["peak"]),
                    "collectives": programs[0].get("collectives") if programs else None,
                }
            )
    return rows


def agreement(runs: Sequence[RunResult], layouts: Sequence[str]) -> list[dict[str, Any]]:
    """How far the losses under a layout are from those under the reference, at most, relatively.

    A row for each label, seed and other layout that have logs in common: `loss` over these, `nll`
    over common validations, None where there are none; `steps` that were compared; `holds` if both
    are below LIMIT; `curve` of (step, difference of the loss).
    """
    by_key = {run.key: run for run in runs}
    rows = []
    for run in runs:
        reference = by_key.get((run.label, layouts[0], run.seed))
        if reference is None or run.layout == layouts[0]:
            continue
        loss = relative(_curve(run, 0, 1, "train"), _curve(reference, 0, 1, "train"))
        if not loss:
            continue
        nll = relative(_curve(run, 0, 1), _curve(reference, 0, 1))
        most = max(d for _, d in loss)
        most_nll = max((d for _, d in nll), default=None)
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


def relative(curve: np.ndarray, reference: np.ndarray) -> list[tuple[float, float]]:
    """(x, |y - y_ref| / |y_ref|) at the x that both curves, float64[n, 2], have."""
    there = {x: y for x, y in reference}
    return [(float(x), float(abs(y - there[x]) / abs(there[x]))) for x, y in curve if x in there]


def value(curve: np.ndarray, x: float) -> float | None:
    """The value of a curve, float64[n, 2], at x, by linear interpolation; None before its first.

    After its last point, it is that.
    """
    xs, ys = curve.T
    return None if x < xs[0] else float(np.interp(x, xs, ys))


def _curve(run: RunResult, at: int, of: int, which: str = "validation") -> np.ndarray:
    points = getattr(run, which)
    return np.array([(p[at], p[of]) for p in points], np.float64).reshape(-1, 2)


def _known(values: Sequence[float | None]) -> dict[str, Any] | None:
    return None if None in values else spread(values)


def _ratio(step_s: float, reference: Sequence[RunResult]) -> float | None:
    return step_s / statistics.fmean(r.step_s for r in reference) if reference else None


def _mean_of(programs: Sequence[dict], read: Callable[[dict], float]) -> float | None:
    found = []
    for program in programs:
        try:
            found.append(float(read(program)))
        except (KeyError, TypeError, ValueError):
            continue
    return statistics.fmean(found) if found else None
