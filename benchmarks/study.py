"""AR, D3PM, RADD and MLM on the same network and text, over seeds: which one models text best?

    python -m benchmarks.study --workdir=/tmp/study --corpora=embedded --seeds=0,1,2 [--json]

Trains every cell by ddm_jax.compare, whose page is in WORKDIR/CORPUS/report.html, then reads the
test split with each run (nats and bits per token, perplexity) and times the first seed's samplers
over 100,000 tokens in batches of 4. Results are kept in each cell; rerunning the command resumes.
Ends with a table and a picture for docs/results.md. --config=configs/study_small.py is the same at
124M parameters on WikiText-103.
"""

import json
import math
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from matplotlib.figure import Figure

from benchmarks.timing import sampling_speed
from ddm_jax import cli
from ddm_jax.evaluation.likelihood.measure import LikelihoodRequest, measure_likelihood
from ddm_jax.objectives.signature import PSEUDO
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.files import read_metrics, write_atomically
from ddm_jax.runs.run import open_run

# row -> (the objective as ddm_jax.compare takes it, the estimator)
ROWS = {
    "AR": ("ar", "auto"),
    "RADD": ("radd_t_dce", "auto"),
    "D3PM, absorbing": ("d3pm:process.name=d3pm_absorbing", "auto"),
    "D3PM, uniform": ("d3pm:process.name=d3pm_uniform:model.time=adaln", "auto"),
    "MLM, in any order": ("mlm", "radd_ao"),
    "MLM, pseudo-likelihood": ("mlm", "mlm_pseudo"),
}
SAMPLE_STEPS = "4,16,64"
DRAWS = 8  # corruptions of each test block

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.", required=True)
_CONFIG = flags.DEFINE_string("config", "configs/study_tiny.py", "Recipe of all runs.")
_CORPORA = flags.DEFINE_list("corpora", ["embedded"], "Values of config.data.source.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds to run.")
_TOKENS = flags.DEFINE_integer(
    "tokens", 100_000, "Tokens that each sampler draws while it is timed."
)
_PICTURE = flags.DEFINE_string("picture", "", "PNG file to draw.")
_JSON = cli.define_json()


def main(argv: list[str]) -> None:
    """Runs what is missing and prints the table."""
    del argv
    found = []
    for corpus in _CORPORA.value:
        folder = Path(_WORKDIR.value) / "".join(c if c.isalnum() else "_" for c in corpus)
        compare(corpus, folder)
        page = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        for row, (objective, estimator) in ROWS.items():
            place = objective.replace(":", ",")
            cells = [folder / "cells" / f"{place}-dp-{seed}" for seed in _SEEDS.value]
            found.append(
                {
                    "corpus": corpus,
                    "row": row,
                    "likelihoods": [likelihood(cell, estimator) for cell in cells],
                    "train_batches_per_s": statistics.median(train_speed(c) for c in cells),
                    **speed(cells[0]),
                    **scores(page, cells[0]),
                }
            )
    print(table(found))
    if _PICTURE.value:
        draw(found, Path(_PICTURE.value))
    if _JSON.value:
        print(json.dumps(found))


def compare(corpus: str, folder: Path) -> None:
    """Trains the unfinished cells and makes their page."""
    objectives = dict.fromkeys(objective for objective, _ in ROWS.values())
    command = [
        *(sys.executable, "-m", "ddm_jax.compare", f"--config={_CONFIG.value}"),
        *(f"--config.data.source={corpus}", f"--workdir={folder}", "--layouts=dp"),
        *(f"--objectives={','.join(objectives)}", f"--seeds={','.join(_SEEDS.value)}"),
        f"--sample_steps={SAMPLE_STEPS}",
    ]
    subprocess.run(command, check=True)


def likelihood(cell: Path, estimator: str) -> dict[str, Any]:
    """The report of ddm_jax.evaluate on the whole test split; kept in the cell."""
    kept = cell / f"study-{estimator}.json"
    if not kept.exists():
        request = LikelihoodRequest(split="test", estimator=estimator, draws=DRAWS)
        report = measure_likelihood(cell, request)
        if report is None:
            sys.exit(1)  # interrupted; it has printed why
        write_atomically(kept, json.dumps(report, indent=1) + "\n")
    return json.loads(kept.read_text(encoding="utf-8"))


def speed(cell: Path) -> dict[str, Any]:
    """Speed of the run's own sampler in batches of 4; kept in the cell."""
    kept = cell / f"study-speed-{_TOKENS.value}.json"
    if not kept.exists():
        layout = dp(jax.local_devices()[:1])
        timed = sampling_speed(open_run(cell, layout=layout), layout, None, _TOKENS.value, 4)
        write_atomically(kept, json.dumps(timed, indent=1) + "\n")
    return json.loads(kept.read_text(encoding="utf-8"))


def train_speed(cell: Path) -> float:
    """Training batches per second, the median over logs."""
    return 1 / statistics.median(
        r["step_s"] for r in read_metrics(cell / "metrics.jsonl") if "step_s" in r
    )


def scores(report: dict[str, Any], cell: Path) -> dict[str, float]:
    """The judge's perplexity and the entropy of the texts of most steps, from report.json."""
    (label,) = [run["label"] for run in report["runs"] if Path(run["folder"]).name == cell.name]
    rows = [row for row in report["texts"]["rows"] if row["label"] == label]
    best = max(rows, key=lambda row: row["steps"])["scores"]
    return {"judged": best["perplexity"], "entropy": best["entropy"]}


def table(found: Sequence[dict[str, Any]]) -> str:
    """Markdown: means over seeds, with the smallest and largest."""
    head = (
        "| corpus | model | number | bits per token | range | nats per token | perplexity "
        "| training batches/s | sampler, NFE | batches/s of 4 | judge's perplexity | entropy |"
    )
    lines = [head, "|---" * head.count(" |") + "|"]
    for row in found:
        bits = [x["bits_per_token"] for x in row["likelihoods"]]
        mean = statistics.fmean(bits)
        nats = mean * math.log(2)
        cells = (
            row["corpus"],
            row["row"],
            row["likelihoods"][0]["estimates"],
            f"{mean:.3f}",
            f"{min(bits):.3f} to {max(bits):.3f}",
            f"{nats:.3f}",
            f"{math.exp(nats):.1f}",
            f"{row['train_batches_per_s']:.3g}",
            f"{row['sampler']}, {row['nfe']:.1f}",
            f"{row['batches_per_s']:.3g}",
            f"{row['judged']:.4g}",
            f"{row['entropy']:.2f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(found: Sequence[dict[str, Any]], path: Path) -> None:
    """Bits per token of each seed, a panel for each corpus; bars are two standard errors."""
    corpora = list(dict.fromkeys(row["corpus"] for row in found))
    figure = Figure(figsize=(4.5 * len(corpora), 3.2), layout="constrained")
    for axes, corpus in zip(
        figure.subplots(1, len(corpora), squeeze=False)[0], corpora, strict=True
    ):
        rows = [row for row in found if row["corpus"] == corpus]
        for y, row in enumerate(rows):
            bits = [x["bits_per_token"] for x in row["likelihoods"]]
            errors = [2 * x["stderr"] / math.log(2) for x in row["likelihoods"]]
            places = [y + 0.15 * (i - (len(bits) - 1) / 2) for i in range(len(bits))]
            hollow = "none" if row["likelihoods"][0]["estimates"] == PSEUDO else "black"
            axes.errorbar(
                bits,
                places,
                xerr=errors,
                fmt="o",
                color="black",
                markerfacecolor=hollow,
                markersize=4,
            )
        axes.set_yticks(range(len(rows)), [row["row"] for row in rows])
        axes.invert_yaxis()
        axes.set_xlabel("bits per token of the test split")
        axes.set_title(Path(corpus.rpartition(":")[2]).stem, fontsize=10)
        axes.grid(axis="x", color="#dddddd")
        axes.set_axisbelow(True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    cli.run(main)
