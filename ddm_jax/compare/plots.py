"""The plots of the page as SVG, readable without colour: by markers, dashes and hatches.

Their size suits the width of a phone. Text stays text, in the fonts of the reader.
"""

import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType


class Style(NamedTuple):
    """How a label is drawn in all plots: by lines (dash, marker) and by bars (hatch)."""

    colour: str
    dash: str | tuple[int, tuple[int, ...]]
    marker: str
    hatch: str


# colours of Okabe and Ito (2008), the dark ones first
STYLES = (
    Style("#000000", "-", "o", ""),
    Style("#0072B2", "--", "s", "///"),
    Style("#D55E00", "-.", "^", "..."),
    Style("#009E73", ":", "D", "xxx"),
    Style("#CC79A7", (0, (5, 1)), "v", "\\\\\\"),
    Style("#E69F00", (0, (3, 1, 1, 1, 1, 1)), "P", "ooo"),
    Style("#56B4E9", (0, (1, 1)), "X", "---"),
    Style("#666666", (0, (8, 2)), "*", "+++"),
)
SIZE = (4.6, 3.4)  # inches
FLOOR = 1e-9  # smaller differences are drawn here
_LOOKS: "dict[RcKeyType, Any]" = {
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


def all_plots(report: Mapping[str, Any]) -> dict[str, str]:
    """The SVG of each plot that has data to show, by name."""
    with matplotlib.rc_context(_LOOKS):
        made = {
            "steps": _validation(report, x=0, label="step"),
            "time": _validation(report, x=3, label="seconds of training"),
            "cost": _step_times(report),
            "bytes": _sent_bytes(report),
            "agreement": _differences(report),
            "quality": _against_nfe(report, "perplexity", "perplexity under the judge"),
            "entropy": _against_nfe(report, "entropy", "entropy of a text, nats"),
        }
        return {name: svg(figure, name) for name, figure in made.items() if figure}


def svg(figure: Figure, name: str) -> str:
    """A figure as an SVG element of a page, whose ids start with `name`."""
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata=no_metadata)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'( id="|url\(#|href="#)', rf"\1{name}-", text)
    # the page sets the size; matplotlib's, in points, would be fixed
    head, rest = text.split(">", 1)
    return re.sub(r' (width|height)="[^"]*"', "", head) + ">" + rest


def style(report: Mapping[str, Any], label: str) -> Style:
    """How a label is drawn: the same in all plots."""
    return STYLES[report["labels"].index(label) % len(STYLES)]


def _axes(**labels: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.set(**labels)
    return figure, axes


def _bars(
    axes: Axes,
    places: Sequence[float] | Sequence[str],
    heights: Sequence[float] | np.ndarray,
    width: float,
    look: Style,
    label: str,
    bottom: np.ndarray | float = 0.0,
) -> None:
    axes.bar(
        places,
        heights,
        width,
        bottom,
        label=label,
        color="white" if look.hatch else "0.25",
        edgecolor=look.colour,
        hatch=look.hatch,
    )


def _legend(figure: Figure, axes: Axes, columns: int = 2) -> None:
    handles, labels = axes.get_legend_handles_labels()
    wide = max(map(len, labels)) > 24
    figure.legend(handles, labels, loc="outside upper left", ncols=1 if wide else columns)


def _validation(report: Mapping[str, Any], x: int, label: str) -> Figure | None:
    """Validation against steps (x=0) or seconds (x=3): mean over seeds, and their range."""
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
        xs, ys = points[..., x].mean(axis=0), points[..., 1]
        look = style(report, row["label"])
        axes.plot(
            xs,
            ys.mean(axis=0),
            color=look.colour,
            linestyle=look.dash,
            marker=look.marker,
            label=f"{row['label']} ({short(row['estimates'])})",
        )
        low, high = ys.min(axis=0), ys.max(axis=0)
        axes.fill_between(xs, low, high, color=look.colour, alpha=0.2, linewidth=0)
    unigram = {row["unigram"] for row in report["objectives"]}
    if len(unigram) == 1 and None not in unigram:
        axes.axhline(unigram.pop(), color="0.4", linestyle=":", linewidth=1, label="unigram model")
    if x == 3 and (at := report["objectives"][0]["seconds"]):
        axes.axvline(at, color="0.4", linewidth=1)
    _legend(figure, axes)
    return figure


def _step_times(report: Mapping[str, Any]) -> Figure | None:
    """Step time of each layout, the objectives side by side."""
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
        look = style(report, label)
        _bars(axes, places, list(own.values()), width, look, label)
    axes.set_xticks(range(len(report["layouts"])), report["layouts"])
    axes.grid(visible=False, axis="x")
    _legend(figure, axes)
    return figure


def _sent_bytes(report: Mapping[str, Any]) -> Figure | None:
    """Bytes that a device sends in a step, by kind of collective, for the first objective."""
    label = next((row["label"] for row in report["costs"] if row["collectives"]), None)
    if label is None:
        return None
    rows = [r for r in report["costs"] if r["label"] == label and r["collectives"] is not None]
    kinds = list(dict.fromkeys(itertools.chain(*(row["collectives"] for row in rows))))
    figure, axes = _axes(ylabel=f"MB sent per device and step ({label})")
    bottom = np.zeros(len(rows))
    layouts = [row["layout"] for row in rows]
    for look, kind in zip(itertools.cycle(STYLES), kinds, strict=False):
        sizes = np.array([row["collectives"].get(kind, 0) / 1e6 for row in rows])
        _bars(axes, layouts, sizes, 0.6, look, kind, bottom)
        bottom += sizes
    axes.grid(visible=False, axis="x")
    _legend(figure, axes)
    return figure


def _differences(report: Mapping[str, Any]) -> Figure | None:
    """Difference of training losses to the reference layout, the largest of all rows, by step."""
    rows = report["agreement"]
    if not rows:
        return None
    figure, axes = _axes(xlabel="step", ylabel=f"relative difference to {report['layouts'][0]}")
    others = report["layouts"][1:]
    for layout, look in zip(others, itertools.cycle(STYLES), strict=False):
        worst: dict[float, float] = {}
        for row in rows:
            if row["layout"] == layout:
                for step, difference in row["curve"]:
                    worst[step] = max(worst.get(step, FLOOR), difference)
        if worst:
            xs, ys = zip(*sorted(worst.items()), strict=True)
            axes.plot(
                xs,
                ys,
                color=look.colour,
                linestyle=look.dash,
                marker=look.marker,
                markevery=max(1, len(xs) // 8),
                label=layout,
            )
    axes.axhline(report["limit"], color="0.4", linestyle=":", label=f"limit {report['limit']:g}")
    axes.set_yscale("log")
    _legend(figure, axes, columns=3)
    return figure


def _against_nfe(report: Mapping[str, Any], name: str, label: str) -> Figure | None:
    """A score of the texts against network evaluations, with that of held-out text."""
    rows = (report["texts"] or {}).get("rows", [])
    rows = [row for row in rows if row["scores"].get(name) is not None]
    if not rows:
        return None
    figure, axes = _axes(xlabel="network evaluations per text (NFE)", ylabel=label)
    for one in dict.fromkeys(row["label"] for row in rows):
        points = sorted((r["nfe"], r["scores"][name]) for r in rows if r["label"] == one)
        xs, ys = zip(*points, strict=True)
        look = style(report, one)
        axes.plot(xs, ys, color=look.colour, linestyle=look.dash, marker=look.marker, label=one)
    if (real := report["texts"]["real"]) and real["scores"].get(name) is not None:
        axes.axhline(real["scores"][name], color="0.4", linestyle=":", label="held-out text")
    axes.set_xscale("log")
    _set_ticks(axes, [row["nfe"] for row in rows])
    low, high = axes.get_ylim()
    # at least a tenth of the values' size, so that noise does not look like a trend
    if (missing := 0.1 * high - (high - low)) > 0:
        axes.set_ylim(low - missing / 2, high + missing / 2)
    _legend(figure, axes)
    return figure


def _set_ticks(axes: Axes, values: Iterable[float]) -> None:
    """Ticks at the powers of two that span the values, rather than at powers of ten."""
    values = list(values)
    low, high = int(np.floor(np.log2(min(values)))), int(np.ceil(np.log2(max(values))))
    ticks = [2**n for n in range(low, high + 1)]
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()


def short(estimates: str) -> str:
    """What a validation number is, in a word or two."""
    words = {"an upper bound": "bound", "exact": "exact"}
    return words.get(estimates, estimates.split(",")[0].removeprefix("a ") or "no estimate")
