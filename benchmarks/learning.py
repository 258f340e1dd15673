"""How well each objective models text: validation likelihood over seeds, at equal steps.

    python -m benchmarks.learning --workdir=/tmp/learning --corpora=embedded --seeds=0,1,2 [--json]

Every cell (corpus, row, seed) is one run of ddm_jax.main's loop in its own folder under --workdir,
with one small network, one optimizer, and one tokenizer per corpus. Finished cells are read and not
run again, so rerunning the command resumes after an interruption; several commands may share a
folder, each with its own seeds. Ends with a table for docs/results.md.
"""

import json
import statistics
import sys
from pathlib import Path

from absl import app, flags

from configs.radd_tiny import get_config
from ddm_jax import cli
from ddm_jax.config import Config, resolve
from ddm_jax.experiment import build
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.runs.files import write_atomically
from ddm_jax.settle import settle
from ddm_jax.training.loop import train_experiment

ABSORBING = {"objective.name": "d3pm", "process.name": "d3pm_absorbing"}
UNIFORM = {"objective.name": "d3pm", "process.name": "d3pm_uniform"}
INDEPENDENT = {"train.times": "independent"}

# row -> what it sets in addition to the common recipe; an objective that does not need the time
# does not receive it
ROWS = {
    "ar": {"objective.name": "ar"},
    "bd3lm, block 4": {"objective.name": "bd3lm"},
    "radd_t_dce": {"objective.name": "radd_t_dce"},
    "radd_lambda_dce": {"objective.name": "radd_lambda_dce"},
    "radd_ao": {"objective.name": "radd_ao"},
    "mdlm, told the time": {"objective.name": "mdlm", "model.time": "adaln"},
    "md4": {"objective.name": "md4", "schedule.name": "linear"},
    "genmd4": {"objective.name": "genmd4"},
    "sedd_absorb": {"objective.name": "sedd_absorb"},
    "d3pm, absorbing": ABSORBING,
    "d3pm_ce, absorbing": {**ABSORBING, "objective.name": "d3pm_ce"},
    "d3pm, absorbing, independent times": {**ABSORBING, **INDEPENDENT},
    "gidd": {"objective.name": "gidd"},
    "udlm": {"objective.name": "udlm"},
    "sedd_uniform": {"objective.name": "sedd_uniform"},
    "d3pm, uniform": UNIFORM,
    # the published lambda = 0.01 is relative to the mean of the 1,000 terms, not to their sum
    "d3pm, uniform, hybrid": {**UNIFORM, "objective.ce_weight": 10.0},
    "d3pm_ce, uniform": {**UNIFORM, "objective.name": "d3pm_ce"},
    "d3pm, uniform, independent times": {**UNIFORM, **INDEPENDENT},
    "mlm": {"objective.name": "mlm"},
}

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.", required=True)
_CORPORA = flags.DEFINE_list("corpora", ["embedded"], "Values of config.data.source.")
_ROWS = flags.DEFINE_multi_string("row", [], "A row to run; may be repeated; all by default.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds to run.")
_STEPS = flags.DEFINE_integer("steps", 1_500, "Training steps.")
_JSON = cli.define_json()


def main(argv: list[str]) -> None:
    """Runs the missing cells, then prints the table of all cells in the folder."""
    del argv
    folder = Path(_WORKDIR.value)
    rows = _ROWS.value or list(ROWS)
    for corpus in _CORPORA.value:
        for seed in _SEEDS.value:
            for row in rows:
                run_cell(folder, corpus, row, int(seed))
    cells = [json.loads(p.read_text(encoding="utf-8")) for p in folder.glob("*/cell.json")]
    print(table(cells))
    if _JSON.value:
        print(json.dumps(cells))


def cell_config(corpus: str, row: str, seed: int) -> Config:
    """The common recipe: two blocks of width 64, 512 tokens a step.

    All rows have adaLN blocks, at a constant time if the objective does not use the time: without
    them this network learns far more slowly, and the comparison would be one of networks.
    """
    config = get_config()
    config.seed = seed
    config.model.width, config.model.depth, config.model.heads = 64, 2, 2
    config.data.source, config.data.tokenizer = corpus, "sentencepiece:512"
    config.data.length, config.train.batch_size = 32, 16
    config.optim.lr = 1.5e-3
    config.train.steps = config.train.checkpoint_every = config.eval.every = _STEPS.value
    config.train.log_every = 100
    config.eval.batch_size, config.eval.sequences, config.eval.draws = 64, 1_024, 4
    config.sampler.steps = config.sampler.num = 1
    config.update_from_flattened_dict(ROWS[row])
    if config.model.time == "auto" and OBJECTIVES[config.objective.name].times[0] == "none":
        config.model.time = "constant"
    return settle(resolve(config))


def run_cell(folder: Path, corpus: str, row: str, seed: int) -> None:
    """Trains, and writes cell.json last: a cell that has one is finished."""
    config = cell_config(corpus, row, seed)
    place = "".join(c if c.isalnum() else "_" for c in f"{corpus} {row} {seed}")
    if (folder / place / "cell.json").exists():
        return
    experiment = build(config)
    outcome = train_experiment(experiment, folder / place)
    if not outcome.finished:
        sys.exit(f"Stopped in {folder / place}. Run the same command to resume.")
    cell = {
        "corpus": corpus,
        "row": row,
        "seed": seed,
        "steps": outcome.step,
        "unigram_nll": experiment.data.unigram_entropy("validation"),
        **outcome.validation.bound.metrics(),
        "estimates": outcome.validation.bound.estimates,
    }
    write_atomically(folder / place / "cell.json", json.dumps(cell))


def table(cells: list[dict]) -> str:
    """Markdown: nats per token, mean over seeds, their range, standard error of one estimate."""
    corpora = sorted({c["corpus"] for c in cells})
    lines = ["| objective | " + " | ".join(f"{c} | range | stderr" for c in corpora) + " |"]
    lines.append("|---|" + "---|---|---|" * len(corpora))
    for row in ROWS:
        parts = [row]
        for corpus in corpora:
            found = [c for c in cells if (c["corpus"], c["row"]) == (corpus, row)]
            nll = [c["nll"] for c in found]
            if found:
                parts += [f"{statistics.mean(nll):.2f}", f"{min(nll):.2f} to {max(nll):.2f}"]
                parts.append(f"{statistics.mean(c['stderr'] for c in found):.2f}")
            else:
                parts += ["", "", ""]
        lines.append("| " + " | ".join(parts) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
