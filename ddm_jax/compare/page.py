"""report.json -> report.html: one file that opens from disk and asks nobody for anything.

Samples, commands and reasons are text that somebody else wrote: all of it is escaped, and the
policy of the page lets no script run but its own, by its hash.
"""

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ddm_jax.compare.html_parts import answer, e, figures, number, quiet, section, table
from ddm_jax.compare.plots import all_plots
from ddm_jax.compare.sentences import about_texts, agree, best, cost
from ddm_jax.compare.style import SCRIPT, STYLE

CAPTIONS = {
    "steps": "Validation against steps: mean over seeds, the shade is their range.",
    "time": "The same against seconds of training; the upright line is the time compared at.",
    "cost": "Seconds of a step, without compiling, validating and saving.",
    "bytes": "What each device sends in a step, by kind of collective: of the compiled program.",
    "agreement": "Relative difference of training losses at each log, the largest over objectives "
    "and seeds; what is equal is drawn at the bottom.",
    "quality": "Perplexity under the judge against network evaluations. Plain or repeated text has "
    "a low one too: read it beside the entropy.",
    "entropy": "Entropy of the tokens of a text: below that of held-out text is poorer language.",
}


def render(report: Mapping[str, Any]) -> str:
    """The whole page."""
    plots = all_plots(report)
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
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
        section("Quality against network evaluations", _nfe(report, plots)),
        section("All runs", _runs(report)),
        section("How to reproduce it", _reproduce(report)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<link rel="icon" href="data:,">\n'
        f"<title>{e(_title(report))}</title>\n<style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(filter(None, body))
        + f"\n<script>{SCRIPT}</script>\n</body></html>\n"
    )


def _title(report: Mapping[str, Any]) -> str:
    labels = list(dict.fromkeys(run["objective"] for run in report["runs"]))
    return f"{', '.join(labels)} across {', '.join(report['layouts'])}"


def _head(report: Mapping[str, Any]) -> str:
    counts = report["counts"]
    others = counts["runs"] - counts["finished"] - counts["failed"]
    parts = [f"{counts['finished']} of {counts['runs']} runs finished"]
    parts += [f"{counts['failed']} failed"] * bool(counts["failed"])
    parts += [f"{others} not finished"] * bool(others)
    notes = "".join(f'<p class="problem">{e(note)}</p>' for note in report["notes"])
    made = f"{', '.join(parts)}; {_devices(report)}; made {report['made']}"
    return f"<h1>{e(_title(report))}</h1>\n<p class=quiet>{e(made)}</p>\n{notes}"


def _devices(report: Mapping[str, Any]) -> str:
    kinds = {json.dumps(run["devices"]) for run in report["runs"] if run["devices"]}
    words = []
    for kind in map(json.loads, sorted(kinds)):
        words.append(f"{len(kind)} x {kind[0]}")
    return f"on {' and '.join(words) or 'no device yet'}, {report['machine']['cpu']}"


def _problems(report: Mapping[str, Any]) -> str:
    rest = [run for run in report["runs"] if run["state"] != "finished"]
    if not rest:
        return ""
    alike: dict[str, list[str]] = {}
    for run in rest:
        alike.setdefault(f"{run['state']}: {run['reason'].splitlines()[0]}", []).append(_name(run))
    items = "".join(
        f"<li><b>{e('; '.join(names))}</b> {e(reason)}</li>" for reason, names in alike.items()
    )
    return (
        '<div class="problem"><b>Not all runs are here.</b> What is missing is left out below; '
        f'<a href="#all-runs">the whole list</a> has each reason in full.<ul>{items}</ul></div>'
    )


def _objectives(report: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    rows = report["objectives"]
    heads = ["objective", "nats per token", "sd", "which is", "stderr", "at equal time", "sd",
             "bits per byte", "seconds", "seeds"]  # fmt: skip
    ranking = table(
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
    note = ""
    if rows:
        unigram = rows[0]["unigram"]
        layouts = ", ".join(dict.fromkeys(name for row in rows for name in row["layouts"]))
        note = (
            f"Validation at step {rows[0]['steps']} and after {rows[0]['seconds']:.1f} s of "
            f"training, under {layouts}: mean over seeds and their standard deviation (sd). "
            "stderr is the error of one run's estimate: its choice of text and its corruptions. "
            "An upper bound may lie above what the model can do, an exact number is what it does, "
            "and a pseudo-likelihood compares with neither. Training losses are not overlaid: "
            "each objective weighs its terms in its own way."
        )
        if unigram is not None:
            note += f" A unigram model has {unigram:.4f} nats per token."
    return answer(best(report)) + figures(plots, CAPTIONS, "steps", "time") + ranking + quiet(note)


def _costs(report: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    kinds = sorted({k for row in report["costs"] for k in row["collectives"] or {}})
    heads = ["objective", "layout", "ms per step", "to reference", "tokens/s", "compiled in, s",
             "peak MiB a device", *(f"{kind}, MB" for kind in kinds)]  # fmt: skip
    rows = [
        [
            row["label"],
            row["layout"],
            number(row["step_s"], ".2f", 1e3),
            number(row["ratio"], ".2f"),
            number(row["tokens_per_s"], ",.0f"),
            number(row["compile_s"], ".1f"),
            number(row["peak_bytes"], ",.1f", 2**-20),
            *(number(_sent(row["collectives"], kind), ",.2f", 1e-6) for kind in kinds),
        ]
        for row in report["costs"]
    ]
    note = (
        "Means over seeds of the median over logs. Collectives: MB that each device sends in a "
        "step. A dash is what is not known."
    )
    return (
        answer(cost(report))
        + figures(plots, CAPTIONS, "cost", "bytes")
        + table(heads, rows, words=(0, 1))
        + quiet(note)
    )


def _sent(collectives: Mapping[str, float] | None, kind: str) -> float | None:
    return None if collectives is None else collectives.get(kind, 0.0)


def _agreement(report: Mapping[str, Any], plots: Mapping[str, str]) -> str:
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
    note = (
        "Largest relative difference over the run. What is random in a step belongs to an example "
        "of the global batch, so that all layouts train on the same corrupted tokens; what is left "
        "is the order in which floating-point sums are taken."
    )
    return (
        answer(agree(report))
        + figures(plots, CAPTIONS, "agreement")
        + (table(heads, rows, words=(0, 2, 6)) + quiet(note) if rows else "")
    )


def _texts(report: Mapping[str, Any]) -> str:
    texts = report["texts"]
    if not texts or not (texts["rows"] or texts["failed"]):
        return quiet("No texts were drawn.")
    most = {row["label"]: row for row in sorted(texts["rows"], key=lambda row: row["nfe"])}
    cards = []
    for label in [x for x in report["labels"] if x in most]:
        row = most[label]
        scores = row["scores"]
        facts = [f"{row['sampler']}, {row['nfe']:.1f} NFE, {row['seconds']:.3g} s a text"]
        if scores.get("perplexity") is not None:
            facts.append(f"perplexity {scores['perplexity']:.4g} under the judge")
        facts.append(f"entropy {scores['entropy']:.2f}, dist-2 {scores['distinct_2']:.3f}")
        cards.append(_card(label, "; ".join(facts), row["texts"]))
    if real := texts["real"]:
        scores = real["scores"]
        facts = [f"entropy {scores['entropy']:.2f}, dist-2 {scores['distinct_2']:.3f}"]
        if scores.get("perplexity") is not None:
            facts.insert(0, f"perplexity {scores['perplexity']:.4g} under the judge")
        cards.append(_card("held-out text", "; ".join(facts), real["texts"]))
    failed = "".join(
        f'<p class="problem"><b>{e(k)}</b>: {e(v)}</p>' for k, v in texts["failed"].items()
    )
    return f'<div class="texts">{"".join(cards)}</div>{failed}' + quiet(about_texts(report))


def _card(title: str, facts: str, texts: Iterable[str]) -> str:
    quotes = "".join(f"<blockquote>{e(text.strip())}</blockquote>" for text in texts)
    return f"<article><h3>{e(title)}</h3>{quiet(facts)}{quotes}</article>"


def _nfe(report: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    texts = report["texts"]
    if not texts or not texts["rows"]:
        return quiet("No texts were drawn.")
    heads = ["objective", "sampler", "steps", "NFE", "s a text", "perplexity", "entropy", "dist-1",
             "dist-2", "repeated 4-grams"]  # fmt: skip

    def scores(of: Mapping[str, float]) -> list[Any]:
        return [
            number(of.get("perplexity"), ".4g"),
            number(of["entropy"], ".3f"),
            number(of["distinct_1"], ".3f"),
            number(of["distinct_2"], ".3f"),
            number(of["repeated_4grams"], ".3f"),
        ]

    rows = [
        [
            row["label"],
            row["sampler"],
            number(row["steps"], "d"),
            number(row["nfe"], ".1f"),
            number(row["seconds"], ".3g"),
            *scores(row["scores"]),
        ]
        for row in texts["rows"]
    ]
    if texts["real"]:
        dash = number(None, "")
        rows.append(["held-out text", "", dash, dash, dash, *scores(texts["real"]["scores"])])
    return figures(plots, CAPTIONS, "quality", "entropy") + table(heads, rows, words=(0, 1))


def _runs(report: Mapping[str, Any]) -> str:
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
    return table(heads, rows, words=(0, 1, 4), long=(4,))


def _reproduce(report: Mapping[str, Any]) -> str:
    begun = [run for run in report["runs"] if run["config"]]
    parts = [f"<pre><code>{e(report['command'])}</code></pre>"]
    facts = [("machine", ", ".join(f"{k} {_short(v)}" for k, v in report["machine"].items()))]
    for name in ("git_revision", "versions", "devices"):
        values = {json.dumps(run[name], sort_keys=True): run[name] for run in begun}
        for value in values.values():
            facts.append((name.replace("_", " "), _words(value)))
    data = {json.dumps(run["data"], sort_keys=True): run["data"] for run in begun if run["data"]}
    for value in data.values():
        words = (
            f"{value['spec']['source']}, source {value['source_fingerprint'][:16]}, tokenizer "
            f"{value['tokenizer']['name']} {value['tokenizer']['fingerprint'][:16]}"
        )
        facts.append(("data", words))
    parts.append("<ul>" + "".join(f"<li><b>{e(k)}</b> {e(v)}" for k, v in facts) + "</ul>")
    for run in report["runs"]:
        config = json.dumps(run["config"], indent=1) if run["config"] else "not begun"
        command = f"<pre><code>{e(run['command'])}</code></pre>" if run["command"] else ""
        parts.append(
            f"<details><summary>{e(_name(run))}</summary><p><code>{e(run['folder'])}</code></p>"
            f"{command}<pre><code>{e(config)}</code></pre></details>"
        )
    return "".join(parts)


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
