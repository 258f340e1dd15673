"""RDM's comparison at a small size: BLEU by objective, decoding and steps, over seeds.

    python -m benchmarks.translation --workdir=/tmp/translation --seeds=0,1 \\
        --set=data.source=pairs:train.tsv --set=data.test=pairs:test.tsv [--json]

Each objective of configs/rdm_multi30k.py is trained once per seed by ddm_jax.main's loop, in its
own folder under --workdir. Its test pairs are translated by each decoding at each number of steps,
at the most likely length only. After an interruption, runs resume and existing translations are
read. The table has the mean of BLEU over seeds, their range, and the milliseconds per sentence in
batches of --batch_size.
"""

import dataclasses
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from configs.rdm_multi30k import get_config
from ddm_jax import cli
from ddm_jax.config import Config, field_type, resolve
from ddm_jax.data.open import open_or_prepare
from ddm_jax.evaluation.text_scores import bleu
from ddm_jax.experiment import build, make_sampler
from ddm_jax.generation.translation import translate
from ddm_jax.generation.translator import make_translator
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.files import write_atomically
from ddm_jax.runs.run import open_run
from ddm_jax.settle import settle
from ddm_jax.training.loop import train_experiment

OPTIONS = ("routing", "cutoff", "noise_scale")
ANCESTRAL = {"name": "ancestral"}
DEFAULT = {"name": "rdm", "routing": "default"}
ADAPTIVE = {"name": "rdm", "routing": "cond", "cutoff": "cosine"}
# variant of the recipe -> its decodings; with masks, RDM's default routing is ancestral sampling
ROWS = {
    "multinomial": {"ancestral": ANCESTRAL},
    "rdm_multinomial": {"ancestral": ANCESTRAL, "default": DEFAULT, "adaptive": ADAPTIVE},
    "absorb": {"ancestral": DEFAULT, "adaptive": ADAPTIVE},
    "rdm_absorb": {"ancestral": DEFAULT, "adaptive": ADAPTIVE},
    "ar": {"greedy": {"name": "autoregressive"}},
}

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.", required=True)
_SET = flags.DEFINE_multi_string(
    "set", [], "section.field=value to set in the recipe; may be repeated."
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1"], "Seeds to run.")
_ROWS = flags.DEFINE_list("rows", list(ROWS), "Objectives to run.")
_STEPS = flags.DEFINE_list("steps", ["2", "4", "8", "16", "25"], "Steps of the samplers.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Sentences translated at once.")
_TRAIN_ONLY = flags.DEFINE_bool("train_only", False, "Train what is missing, and do not translate.")
_JSON = cli.define_json()


def main(argv: Sequence[str]) -> None:
    """Trains and translates what is missing, then prints the table."""
    del argv
    logging.set_verbosity(logging.WARNING)
    folder = Path(_WORKDIR.value)
    cells = []
    for seed in map(int, _SEEDS.value):
        for row in _ROWS.value:
            workdir = folder / f"{row}-{seed}"
            print(f"=== {workdir}", file=sys.stderr, flush=True)
            if not train_experiment(build(settle(recipe(row, seed))), workdir).finished:
                sys.exit(f"Stopped in {workdir}. Run the same command to resume.")
            for decoding in () if _TRAIN_ONLY.value else ROWS[row]:
                cells += run_cells(workdir, row, seed, decoding)
    print(table(cells))
    if _JSON.value:
        print(json.dumps(cells))


def recipe(row: str, seed: int, sampler: Mapping[str, Any] | None = None) -> Config:
    """The variant of the recipe with the values of --set, and another sampler if given."""
    config = get_config(f"objective={row}")
    config.seed = seed
    config.sampler.lengths = 1
    for setting in _SET.value:
        name, _, value = setting.partition("=")
        config.update_from_flattened_dict({name: field_type(name)(value)})
    if sampler:
        config.sampler.update(dict.fromkeys(OPTIONS) | dict(sampler))
        config.eval.batch_size = _BATCH_SIZE.value
    return resolve(config)


def run_cells(workdir: Path, row: str, seed: int, decoding: str) -> list[dict[str, Any]]:
    """BLEU, NFE and ms per sentence for each number of steps; read from files if they exist."""
    numbers = [1] if row == "ar" else [int(n) for n in _STEPS.value]
    paths = [workdir / f"cell-{decoding}-{n}.json" for n in numbers]
    if not all(path.exists() for path in paths):
        config = settle(recipe(row, seed, ROWS[row][decoding]))
        layout = dp(jax.devices())
        run = open_run(workdir, layout=layout)
        translator = make_translator(
            run.network, run.process, make_sampler(config), config, run.tokenizer, layout
        )
        pairs = [p for p in open_or_prepare(config.data).texts("test") if translator.fits(p[0])]
        sources, references = (list(side) for side in zip(*pairs, strict=True))
        for steps, path in zip(numbers, paths, strict=True):
            sampler = dataclasses.replace(config.sampler, steps=steps)
            again = dataclasses.replace(config, sampler=sampler)
            made = translate(
                dataclasses.replace(translator, config=again), run.params, sources, seed
            )
            score, signature = bleu(made.texts, references)
            ms = 1e3 * made.seconds / len(pairs)
            cell = {
                "row": row,
                "seed": seed,
                "decoding": decoding,
                "steps": steps,
                "bleu": score,
                "bleu_signature": signature,
                "bleu_copy": bleu(sources, references)[0],
                "pairs": len(pairs),
                "nfe": statistics.mean(made.nfe),
                "ms": ms,
                "example": [sources[0], references[0], made.texts[0]],
            }
            write_atomically(path, json.dumps(cell))
            print(
                f"{row}, {decoding}, {steps} steps: BLEU {score:.2f}, {ms:.1f} ms", file=sys.stderr
            )
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def table(cells: Sequence[Mapping[str, Any]]) -> str:
    """Markdown: BLEU (range over seeds) and ms per sentence, by decoding and steps."""
    steps = sorted({c["steps"] for c in cells if c["row"] != "ar"})
    lines = ["| trained | decoded | " + " | ".join(f"{n} steps" for n in steps) + " |"]
    lines.append("|---|---|" + "---|" * len(steps))
    for row, decodings in ROWS.items():
        for decoding in decodings:
            parts = [row, decoding]
            for n in steps:
                same = (row, decoding, 1 if row == "ar" else n)
                found = [c for c in cells if (c["row"], c["decoding"], c["steps"]) == same]
                scores = [c["bleu"] for c in found]
                if found:
                    ms = statistics.mean(c["ms"] for c in found)
                    spread = f"{min(scores):.1f} to {max(scores):.1f}"
                    parts.append(f"{statistics.mean(scores):.2f} ({spread}), {ms:.1f} ms")
            lines.append("| " + " | ".join(parts) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    app.run(main)
