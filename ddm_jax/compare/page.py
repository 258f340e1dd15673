"""report.json -> report.html: one file that opens from disk and makes no request.

Samples, commands and reasons are text from elsewhere: all of it is escaped, and the page's content
security policy lets only its own script run, identified by its hash.
"""

import base64
import hashlib
import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ddm_jax.compare.html_parts import (
    Entry,
    answer,
    escape,
    figures,
    html_table,
    note,
    number,
    section,
)
from ddm_jax.compare.plots import all_plots
from ddm_jax.compare.sentences import (
    about_texts,
    best_objective,
    layout_agreement,
    layout_cost,
)
from ddm_jax.wording import counted

Report = Mapping[str, Any]
Plots = Mapping[str, str]

CAPTIONS = {
    "steps": "Validation against training steps: mean over seeds; the shaded band is their range.",
    "time": "Validation against seconds of training; the vertical line is the time at which "
    "objectives are compared.",
    "cost": "Time of a training step, without compilation, validation and saving.",
    "bytes": "Bytes that each device sends in a step, by kind of collective, from the compiled "
    "program.",
    "agreement": "Relative difference of training losses at each log, the largest over objectives "
    "and seeds. Equal losses are drawn at the bottom.",
    "quality": "Perplexity under the judge against network evaluations. Plain or repetitive text "
    "also has a low perplexity: read it together with the entropy.",
    "entropy": "Entropy of the tokens of a text. A value below that of held-out text means poorer "
    "language.",
}


def render(report: Report) -> str:
    """The whole page.

    Args:
      report: of report.make_report, or report.json as read back.
    """
    plots = all_plots(report)
    style, script = _resource("page.css"), _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    body = [
        _head(report),
        _problems(report),
        section("Which objective models the text best", _objectives(report, plots)),
        section("What each layout costs", _costs(report, plots)),
        section("Whether a layout changes anything", _agreement(report, plots)),
        section("What the samples look like", _texts(report)),
        section("Quality against network evaluations", _quality(report, plots)),
        section("All runs", _runs(report)),
        section("How to reproduce it", _reproduce(report)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(_title(report))}</title>\n<style>{style}</style></head>\n<body>\n"
        + "\n".join(filter(None, body))
        + f"\n<script>{script}</script>\n</body></html>\n"
    )


def _resource(name: str) -> str:
    """The text of a data file of this package."""
    return importlib.resources.files("ddm_jax.compare").joinpath(name).read_text(encoding="utf-8")


def _title(report: Report) -> str:
    objectives = list(dict.fromkeys(run["objective"] for run in report["runs"]))
    return f"{', '.join(objectives)} across {', '.join(report['layouts'])}"


def _head(report: Report) -> str:
    """Title, counts and warnings."""
    counts = report["counts"]
    others = counts["runs"] - counts["finished"] - counts["failed"]
    parts = [f"{counts['finished']} of {counted(counts['runs'], 'run')} finished"]
    if counts["failed"]:
        parts.append(f"{counts['failed']} failed")
    if others:
        parts.append(f"{others} not finished")
    notes = "".join(f'<p class="problem">{escape(text)}</p>' for text in report["notes"])
    made = f"{', '.join(parts)}; {_devices(report)}; made {report['made']}"
    return f"<h1>{escape(_title(report))}</h1>\n<p class=quiet>{escape(made)}</p>\n{notes}"


def _devices(report: Report) -> str:
    kinds = {json.dumps(run["devices"]) for run in report["runs"] if run["devices"]}
    words = [f"{len(kind)} x {kind[0]}" for kind in map(json.loads, sorted(kinds))]
    return f"on {' and '.join(words) or 'no device yet'}, {report['machine']['cpu']}"


def _problems(report: Report) -> str:
    """The runs that are not finished, those with the same reason together; empty if none."""
    rest = [run for run in report["runs"] if run["state"] != "finished"]
    if not rest:
        return ""
    by_reason: dict[str, list[str]] = {}
    for run in rest:
        reason = f"{run['state']}: {run['reason'].splitlines()[0]}"
        by_reason.setdefault(reason, []).append(_name(run))
    items = "".join(
        f"<li><b>{escape('; '.join(names))}</b> {escape(reason)}</li>"
        for reason, names in by_reason.items()
    )
    return (
        '<div class="problem"><b>Some runs have not finished.</b> They are left out of the results '
        'below; <a href="#all-runs">the list of all runs</a> gives each reason in full.'
        f"<ul>{items}</ul></div>"
    )


def _objectives(report: Report, plots: Plots) -> str:
    rows = report["objectives"]
    heads = ["objective", "nats per token", "sd", "kind of number", "stderr", "at equal time", "sd",
             "bits per byte", "seconds", "seeds"]  # fmt: skip
    ranking = html_table(
        heads,
        [
            [
                row["label"],
                number((row["nll"] or {}).get("mean"), ".4f"),
                number((row["nll"] or {}).get("sd"), ".4f"),
                row["estimates"],
                number(row["stderr"], ".4f"),
                number((row["nll_at_time"] or {}).get("mean"), ".4f"),
                number((row["nll_at_time"] or {}).get("sd"), ".4f"),
                number(row["bits_per_byte"]["mean"], ".3f"),
                number(row["train_s"], ".1f"),
                ", ".join(map(str, row["seeds"])),
            ]
            for row in rows
        ],
        words=(0, 3, 9),
    )
    plotted = figures(plots, CAPTIONS, "steps", "time")
    return answer(best_objective(report)) + plotted + ranking + note(_about_objectives(rows))


def _about_objectives(rows: Sequence[Mapping[str, Any]]) -> str:
    """What to know when reading the ranking; empty if it is empty."""
    if not rows:
        return ""
    unigram = rows[0]["unigram"]
    layouts = ", ".join(dict.fromkeys(name for row in rows for name in row["layouts"]))
    text = (
        f"Validation at step {rows[0]['steps']} and after {rows[0]['seconds']:.1f} s of "
        f"training, under {layouts}: mean over seeds and their standard deviation (sd). "
        "stderr is the error of one run's estimate, from its choice of text and its corruptions. "
        "An upper bound may lie above what the model can do; an exact number is what it does; a "
        "pseudo-likelihood is not comparable with either. Training losses are not plotted "
        "together, because each objective weights its terms in its own way."
    )
    if unigram is not None:
        text += f" A unigram model has {unigram:.4f} nats per token."
    return text


def _costs(report: Report, plots: Plots) -> str:
    kinds = sorted({k for row in report["costs"] for k in row["collectives"] or {}})
    heads = ["objective", "layout", "ms per step", "relative to reference", "tokens/s",
             "compilation, s", "peak MiB per device",
             *(f"{kind}, MB" for kind in kinds)]  # fmt: skip
    rows = [
        [
            row["label"],
            row["layout"],
            number(row["step_s"], ".2f", 1e3),
            number(row["ratio"], ".2f"),
            number(row["tokens_per_s"], ",.0f"),
            number(row["compile_s"], ".1f"),
            number(row["peak_bytes"], ",.1f", 2**-20),
            *(number(_sent_bytes(row["collectives"], kind), ",.2f", 1e-6) for kind in kinds),
        ]
        for row in report["costs"]
    ]
    about = (
        "Means over seeds of the median over logs. Collectives: MB that each device sends in a "
        "step. A dash means that the number is not known."
    )
    return (
        answer(layout_cost(report))
        + figures(plots, CAPTIONS, "cost", "bytes")
        + html_table(heads, rows, words=(0, 1))
        + note(about)
    )


def _sent_bytes(collectives: Mapping[str, float] | None, kind: str) -> float | None:
    return None if collectives is None else collectives.get(kind, 0.0)


def _agreement(report: Report, plots: Plots) -> str:
    rows = [
        [
            row["label"],
            str(row["seed"]),
            f"{row['layout']} to {row['reference']}",
            number(row["loss"], ".1e"),
            number(row["nll"], ".1e"),
            number(row["steps"], "d"),
            "below" if row["holds"] else "ABOVE",
        ]
        for row in report["agreement"]
    ]
    limit = f"the limit, {report['limit']:g}"
    heads = ["objective", "seed", "layouts", "training loss", "validation", "steps", limit]
    about = (
        "Largest relative difference over the run. Randomness belongs to an example of the global "
        "batch, so all layouts train on the same corrupted tokens; only the order of "
        "floating-point sums differs."
    )
    table = html_table(heads, rows, words=(0, 2, 6)) + note(about) if rows else ""
    return answer(layout_agreement(report)) + figures(plots, CAPTIONS, "agreement") + table


def _texts(report: Report) -> str:
    texts = report["texts"]
    if not texts or not (texts["rows"] or texts["failed"]):
        return note("No texts were drawn.")
    # of each label, the row of most network evaluations
    most = {row["label"]: row for row in sorted(texts["rows"], key=lambda row: row["nfe"])}
    cards = []
    for label in [label for label in report["labels"] if label in most]:
        row = most[label]
        facts = [f"{row['sampler']}, {row['nfe']:.1f} NFE, {row['seconds']:.3g} s per text"]
        cards.append(_card(label, [*facts, *_score_facts(row["scores"])], row["texts"]))
    if real := texts["real"]:
        cards.append(_card("held-out text", _score_facts(real["scores"]), real["texts"]))
    failed = "".join(
        f'<p class="problem"><b>{escape(label)}</b>: {escape(reason)}</p>'
        for label, reason in texts["failed"].items()
    )
    return f'<div class="texts">{"".join(cards)}</div>{failed}' + note(about_texts(report))


def _score_facts(scores: Mapping[str, float]) -> list[str]:
    facts = [f"entropy {scores['entropy']:.2f}, dist-2 {scores['distinct_2']:.3f}"]
    if scores.get("perplexity") is not None:
        facts.insert(0, f"perplexity {scores['perplexity']:.4g} under the judge")
    return facts


def _card(title: str, facts: Iterable[str], texts: Iterable[str]) -> str:
    quotes = "".join(f"<blockquote>{escape(text.strip())}</blockquote>" for text in texts)
    return f"<article><h3>{escape(title)}</h3>{note('; '.join(facts))}{quotes}</article>"


def _quality(report: Report, plots: Plots) -> str:
    texts = report["texts"]
    if not texts or not texts["rows"]:
        return note("No texts were drawn.")
    heads = ["objective", "sampler", "steps", "NFE", "s per text", "perplexity", "entropy",
             "dist-1", "dist-2", "repeated 4-grams"]  # fmt: skip
    rows = [
        [
            row["label"],
            row["sampler"],
            number(row["steps"], "d"),
            number(row["nfe"], ".1f"),
            number(row["seconds"], ".3g"),
            *_score_entries(row["scores"]),
        ]
        for row in texts["rows"]
    ]
    if texts["real"]:
        dash = number(None, "")
        scores = _score_entries(texts["real"]["scores"])
        rows.append(["held-out text", "", dash, dash, dash, *scores])
    return figures(plots, CAPTIONS, "quality", "entropy") + html_table(heads, rows, words=(0, 1))


def _score_entries(scores: Mapping[str, float]) -> list[Entry]:
    return [
        number(scores.get("perplexity"), ".4g"),
        number(scores["entropy"], ".3f"),
        number(scores["distinct_1"], ".3f"),
        number(scores["distinct_2"], ".3f"),
        number(scores["repeated_4grams"], ".3f"),
    ]


def _runs(report: Report) -> str:
    heads = ["run", "state", "step", "nats per token", "reason"]
    rows = [
        [
            _name(run),
            run["state"],
            (f"{run['step']} of {run['steps']}" if run["steps"] else "-", run["step"]),
            number((run["final"] or {}).get("nll"), ".4f"),
            run["reason"],
        ]
        for run in report["runs"]
    ]
    return html_table(heads, rows, words=(0, 1, 4), long=(4,))


def _reproduce(report: Report) -> str:
    """Command, machine, versions, data, and the config and command of each run."""
    parts = [f"<pre><code>{escape(report['command'])}</code></pre>"]
    items = "".join(f"<li><b>{escape(k)}</b> {escape(v)}</li>" for k, v in _facts(report))
    parts.append(f"<ul>{items}</ul>")
    for run in report["runs"]:
        config = json.dumps(run["config"], indent=1) if run["config"] else "not started"
        command = f"<pre><code>{escape(run['command'])}</code></pre>" if run["command"] else ""
        parts.append(
            f"<details><summary>{escape(_name(run))}</summary>"
            f"<p><code>{escape(run['folder'])}</code></p>"
            f"{command}<pre><code>{escape(config)}</code></pre></details>"
        )
    return "".join(parts)


def _facts(report: Report) -> list[tuple[str, str]]:
    """(name, value) of the machine, and of each different value that the runs recorded."""
    started = [run for run in report["runs"] if run["config"]]
    machine = (f"{name} {_short(value)}" for name, value in report["machine"].items())
    facts = [("machine", ", ".join(machine))]
    for name in ("git_revision", "versions", "devices"):
        facts += [(name.replace("_", " "), _words(value)) for value in _different(started, name)]
    for data in _different([run for run in started if run["data"]], "data"):
        words = (
            f"{data['spec']['source']}, source {data['source_fingerprint'][:16]}, tokenizer "
            f"{data['tokenizer']['name']} {data['tokenizer']['fingerprint'][:16]}"
        )
        facts.append(("data", words))
    return facts


def _different(runs: Iterable[Mapping[str, Any]], name: str) -> list[Any]:
    """The different values of a field, in the order of the runs."""
    return list({json.dumps(run[name], sort_keys=True): run[name] for run in runs}.values())


def _name(run: Mapping[str, Any]) -> str:
    return f"{run['label']}, {run['layout']}, seed {run['seed']}"


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    if isinstance(value, list):
        return f"{len(value)} x {value[0]}"
    return str(value)


def _short(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)
