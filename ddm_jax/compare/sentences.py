"""The sentence that answers each section of the page."""

import statistics
from collections.abc import Mapping
from typing import Any

from ddm_jax.objectives.signature import PSEUDO


def best_objective(report: Mapping[str, Any]) -> str:
    """Ranks the objectives at equal steps and at equal time, the lowest number first."""
    rows = [row for row in report["objectives"] if row["estimates"] != PSEUDO]
    if not rows:
        return "No run has finished yet."
    parts = []
    if known := [row for row in rows if row["nll"]]:
        parts.append(f"At equal steps ({rows[0]['steps']:,}): {_ranked(known, 'nll')}.")
    if len(timed := [row for row in rows if row["nll_at_time"]]) > 1:
        parts.append(
            f"At equal time ({rows[0]['seconds']:.1f} s): {_ranked(timed, 'nll_at_time')}."
        )
    return " ".join(parts)


def layout_cost(report: Mapping[str, Any]) -> str:
    """Step time of each layout relative to the reference, over objectives."""
    reference, *others = report["layouts"]
    parts = []
    for layout in others:
        ratios = [r["ratio"] for r in report["costs"] if r["layout"] == layout and r["ratio"]]
        if ratios:
            parts.append(f"{statistics.geometric_mean(ratios):.2f} times as long under {layout}")
    if not parts:
        return "Only one layout has been timed."
    return (
        f"Compared with {reference}, a training step takes {' and '.join(parts)} "
        "(geometric mean over objectives)."
    )


def layout_agreement(report: Mapping[str, Any]) -> str:
    """The largest difference between layouts, and whether it is below the limit."""
    rows = report["agreement"]
    if not rows:
        return "No two runs differ only in their layout."
    worst = max(rows, key=lambda row: max(row["loss"], row["nll"] or 0.0))
    most = max(worst["loss"], worst["nll"] or 0.0)
    holds = all(row["holds"] for row in rows)
    return (
        f"The largest relative difference to {worst['reference']} is {most:.1e} "
        f"({worst['label']}, {worst['layout']}, seed {worst['seed']}), "
        f"{'below' if holds else 'NOT below'} the limit of {report['limit']:g}."
    )


def about_texts(report: Mapping[str, Any]) -> str:
    """What to know when reading the texts."""
    texts = report["texts"]
    words = (
        f"These are the first of the {texts['num']} texts drawn for each objective, at the largest "
        "number of network evaluations that was tried; they are neither selected nor edited. "
        "dist-2 is the share of distinct pairs of words."
    )
    if texts["judge"]:
        words += f" The judge is {texts['judge']}; it favours texts that it wrote itself."
    return words


def _ranked(rows: list[Mapping[str, Any]], name: str) -> str:
    ordered = sorted(rows, key=lambda row: row[name]["mean"])
    return ", then ".join(f"{row['label']} {_mean_and_sd(row[name])}" for row in ordered)


def _mean_and_sd(found: Mapping[str, Any]) -> str:
    return f"{found['mean']:.3f}" + (f" ± {found['sd']:.3f}" if found["sd"] is not None else "")
