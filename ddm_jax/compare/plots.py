"""The plots of a page as SVG: told apart by markers, dashes and hatches, not by colour alone.

Sized to be read at the width of a phone. Text stays text, in the fonts of the reader.
"""

import io
import itertools
import re
from collections.abc import Iterable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# colours of Okabe and Ito (2008), the dark ones first, each with its own dash, marker and hatch
STYLES = (
    ("#000000", "-", "o", ""),
    ("#0072B2", "--", "s", "///"),
    ("#D55E00", "-.", "^", "..."),
    ("#009E73", ":", "D", "xxx"),
    ("#CC79A7", (0, (5, 1)), "v", "\\\\\\"),
    ("#E69F00", (0, (3, 1, 1, 1, 1, 1)), "P", "ooo"),
    ("#56B4E9", (0, (1, 1)), "X", "---"),
    ("#666666", (0, (8, 2)), "*", "+++"),
)
SIZE = (4.6, 3.4)  # inches
FLOOR = 1e-9  # differences are drawn no lower
_LOOKS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.markersize": 5,
    "lines.linewidth": 1.5,
    "hatch.linewidth": 0.6,
}


def all_plots(report: dict[str, Any]) -> dict[str, str]:
    """The SVG of each plot that has something to show, by name."""
    with matplotlib.rc_context(_LOOKS):
        made = {
            "steps": _bounds(report, of=0, label="step"),
            "time": _bounds(report, of=3, label="seconds of training"),
            "cost": _cost(report),
            "bytes": _bytes(report),
            "agreement": _agreement(report),
            "quality": _against_nfe(report, "perplexity", "perplexity under the judge"),
            "entropy": _against_nfe(report, "entropy", "entropy of a text, nats"),
        }
        return {name: svg(figure, name) for name, figure in made.items() if figure}


def svg(figure: Figure, name: str) -> str:
    """A figure as an SVG element that stands in a page: its ids are its own."""
    file = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata=nothing)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'( id="|url\(#|href="#)', rf"\1{name}-", text)
    # the page gives the size; matplotlib's, in points, would be fixed
    head, rest = text.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + rest


def style(report: dict[str, Any], label: str) -> tuple[Any, ...]:
    """Colour, dash, marker and hatch of a label: the same in all plots."""
    return STYLES[report["labels"].index(label) % len(STYLES)]


def _axes(**labels: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set(**labels)
    return figure, axes


def _legend(figure: Figure, axes: Axes, columns: int = 2) -> None:
    handles, labels = axes.get_legend_handles_labels()
    wide = max(map(len, labels)) > 24
    figure.legend(handles, labels, loc="outside upper left", ncols=1 if wide else columns)


def _bounds(report: dict[str, Any], of: int, label: str) -> Figure | None:
    """Validation against steps (of=0) or time (of=3): mean over seeds, and the range."""
    if not report["objectives"]:
        return None
    figure, axes = _axes(xlabel=label, ylabel="validation, nats per token")
    for row in report["objectives"]:
        runs = [
            run
            for run in report["runs"]
            if run["label"] == row["label"]
            and run["layout"] == row["layouts"][0]
            and run["state"] == "finished"
        ]
        length = min(len(run["validation"]) for run in runs)
        points = np.array([run["validation"][:length] for run in runs], np.float64)
        x, y = points[..., of].mean(axis=0), points[..., 1]
        colour, dash, marker, _ = style(report, row["label"])
        axes.plot(x, y.mean(axis=0), color=colour, linestyle=dash, marker=marker,
                  label=f"{row['label']} ({short(row['estimates'])})")  # fmt: skip
        axes.fill_between(x, y.min(axis=0), y.max(axis=0), color=colour, alpha=0.2, linewidth=0)
    unigram = {row["unigram"] for row in report["objectives"]}
    if len(unigram) == 1 and None not in unigram:
        axes.axhline(unigram.pop(), color="0.4", linestyle=":", linewidth=1, label="unigram model")
    if of == 3 and (at := report["objectives"][0]["seconds"]):
        axes.axvline(at, color="0.4", linewidth=1)
    _legend(figure, axes)
    return figure


def _cost(report: dict[str, Any]) -> Figure | None:
    """Step time of each layout, objectives beside each other."""
    rows = report["costs"]
    if not rows:
        return None
    figure, axes = _axes(ylabel="ms per step")
    labels = [x for x in report["labels"] if any(row["label"] == x for row in rows)]
    width = 0.8 / len(labels)
    for i, label in enumerate(labels):
        own = {row["layout"]: 1e3 * row["step_s"] for row in rows if row["label"] == label}
        places = [
            report["layouts"].index(name) + (i - (len(labels) - 1) / 2) * width for name in own
        ]
        colour, _, _, hatch = style(report, label)
        axes.bar(places, list(own.values()), width, color="white" if hatch else "0.25",
                 edgecolor=colour, hatch=hatch, label=label)  # fmt: skip
    axes.set_xticks(range(len(report["layouts"])), report["layouts"])
    axes.grid(visible=False, axis="x")
    _legend(figure, axes)
    return figure


def _bytes(report: dict[str, Any]) -> Figure | None:
    """Bytes that a device sends in a step, by kind of collective, for the first objective."""
    label = next((row["label"] for row in report["costs"] if row["collectives"]), None)
    if label is None:
        return None
    rows = [r for r in report["costs"] if r["label"] == label and r["collectives"] is not None]
    kinds = list(dict.fromkeys(itertools.chain(*(row["collectives"] for row in rows))))
    figure, axes = _axes(ylabel=f"MB a device sends in a step ({label})")
    bottom = np.zeros(len(rows))
    for (colour, _, _, hatch), kind in zip(itertools.cycle(STYLES), kinds, strict=False):
        sizes = np.array([row["collectives"].get(kind, 0) / 1e6 for row in rows])
        axes.bar([row["layout"] for row in rows], sizes, 0.6, bottom, label=kind,
                 color="white" if hatch else "0.25", edgecolor=colour, hatch=hatch)  # fmt: skip
        bottom += sizes
    axes.grid(visible=False, axis="x")
    _legend(figure, axes)
    return figure


def _agreement(report: dict[str, Any]) -> Figure | None:
    """Difference of training losses to the reference layout, the largest of all, over steps."""
    rows = report["agreement"]
    if not rows:
        return None
    figure, axes = _axes(xlabel="step", ylabel=f"relative difference to {report['layouts'][0]}")
    others = report["layouts"][1:]
    for layout, (colour, dash, marker, _) in zip(others, itertools.cycle(STYLES), strict=False):
        worst: dict[float, float] = {}
        for row in rows:
            if row["layout"] == layout:
                for step, difference in row["curve"]:
                    worst[step] = max(worst.get(step, FLOOR), difference)
        if worst:
            xs, ys = zip(*sorted(worst.items()), strict=True)
            axes.plot(xs, ys, color=colour, linestyle=dash, marker=marker, label=layout,
                      markevery=max(1, len(xs) // 8))  # fmt: skip
    axes.axhline(report["limit"], color="0.4", linestyle=":", label=f"limit {report['limit']:g}")
    axes.set_yscale("log")
    _legend(figure, axes, columns=3)
    return figure


def _against_nfe(report: dict[str, Any], name: str, label: str) -> Figure | None:
    rows = (report["texts"] or {}).get("rows", [])
    rows = [row for row in rows if row["scores"].get(name) is not None]
    if not rows:
        return None
    figure, axes = _axes(xlabel="network evaluations a text (NFE)", ylabel=label)
    for one in dict.fromkeys(row["label"] for row in rows):
        points = sorted((r["nfe"], r["scores"][name]) for r in rows if r["label"] == one)
        colour, dash, marker, _ = style(report, one)
        axes.plot(
            *zip(*points, strict=True), color=colour, linestyle=dash, marker=marker, label=one
        )
    if (real := report["texts"]["real"]) and real["scores"].get(name) is not None:
        axes.axhline(real["scores"][name], color="0.4", linestyle=":", label="held-out text")
    axes.set_xscale("log")
    _ticks(axes, [row["nfe"] for row in rows])
    low, high = axes.get_ylim()
    if (short_of := 0.1 * high - (high - low)) > 0:  # noise is not to look like a trend
        axes.set_ylim(low - short_of / 2, high + short_of / 2)
    _legend(figure, axes)
    return figure


def _ticks(axes: Axes, values: Iterable[float]) -> None:
    """Powers of two that span the values: 10^0.5 says nothing of a number of evaluations."""
    values = list(values)
    low, high = int(np.floor(np.log2(min(values)))), int(np.ceil(np.log2(max(values))))
    ticks = [2**n for n in range(low, high + 1)]
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()


def short(estimates: str) -> str:
    """What a number is, in a word or two."""
    words = {"an upper bound": "bound", "exact": "exact"}
    return words.get(estimates, estimates.split(",")[0].removeprefix("a ") or "no estimate")
