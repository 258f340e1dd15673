"""Scores of a trained run on held-out pairs: python -m ddm_jax.evaluate --workdir=work/rdm_tiny.

It translates the sources and compares with the references: BLEU with its signature, chrF, ROUGE-L,
diversity, time and network evaluations, beside what copying the source scores. Nothing in the run
is changed; a report and the translations are added under WORKDIR/evaluation/.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from ddm_jax import cli, run_flags
from ddm_jax.config import Config
from ddm_jax.data import pair_files
from ddm_jax.data.opening import open_or_prepare
from ddm_jax.decoding import open_translator, read_run, settings
from ddm_jax.errors import UserError
from ddm_jax.evaluation.text import bleu, scores
from ddm_jax.evaluation.translation import Translations, translate
from ddm_jax.training.writers import write_new

_SOURCE = flags.DEFINE_string("source", "", "pairs:NAME to translate; the run's own by default")
_SPLIT = flags.DEFINE_enum("split", "test", ["validation", "test"], "of the run's own pairs")
_NUM = flags.DEFINE_integer("num", None, "so many of the first pairs; all by default")


def main(argv: Sequence[str]) -> None:
    """Translates, scores and writes.

    Raises:
      UserError: a bad flag, no run, or no pairs.
    """
    del argv
    workdir = run_flags.check({"num": run_flags.POSITIVE})
    config = read_run(workdir)
    pairs, name = _read(config)
    run, translator = open_translator(workdir, config)
    fitting = [pair for pair in pairs if translator.fits(pair[0])]
    left_out = len(pairs) - len(fitting)
    if not fitting:
        raise UserError(
            f"Every source of {name} is longer than the run's config.data.source_length="
            f"{config.data.source_length}: shorten them."
        )
    sources, references = (list(side) for side in zip(*fitting, strict=True))
    print(
        f"Translating {len(sources)} sources of {name}; {left_out} are longer than the run's "
        f"config.data.source_length={config.data.source_length} and left out",
        file=sys.stderr,
    )
    made = translate(translator, run.params, sources, run_flags.SEED.value, name)
    report = {
        "workdir": str(workdir),
        "data": name,
        "pairs": len(sources),
        "left_out": left_out,
        **scores(made.texts, references, made.candidates),
        "bleu_copy": bleu(sources, references)[0],
        "nfe": sum(made.nfe) / len(made.nfe),
        "seconds_per_source": made.seconds / len(sources),
        "compile_s": made.compile_s,
        **settings(run, config),
    }
    written = _write(workdir, report, fitting, made)
    print(table(report))
    print(f"Wrote {written} and the translations beside it")
    if run_flags.JSON.value:
        print(json.dumps(report | {"out": str(written)}))


def table(report: Mapping[str, Any]) -> str:
    """Two columns."""
    rows = {k: f"{x:.4g}" if isinstance(x, float) else str(x) for k, x in report.items()}
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _read(config: Config) -> tuple[list[tuple[str, str]], str]:
    """The pairs that the flags name, and what to call them."""
    if _SOURCE.value:
        pairs, name = list(pair_files.read(_SOURCE.value)), _SOURCE.value
    else:
        pairs = open_or_prepare(config.data).texts(_SPLIT.value)
        name = f"{_SPLIT.value} of {config.data.source}"
    if not pairs:
        raise UserError(
            f"There are no pairs in {name}: give others with --source=pairs:NAME or --split."
        )
    return pairs[: _NUM.value], name


def _write(
    workdir: Path, report: Mapping[str, Any], pairs: Sequence[tuple[str, str]], made: Translations
) -> Path:
    """WORKDIR/evaluation/STEP-SAMPLER-STEPS.json, and .jsonl with every translation."""
    folder = workdir / "evaluation"
    folder.mkdir(exist_ok=True)
    stem = "{checkpoint:08d}-{sampler[name]}-{sampler[steps]}".format(**report)
    lines = [
        {"source": source, "reference": reference, "translation": text, "candidates": of, "nfe": n}
        for (source, reference), text, of, n in zip(
            pairs, made.texts, made.candidates, made.nfe, strict=True
        )
    ]
    texts = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_new(folder / f"{stem}.jsonl", texts)
    return write_new(folder / f"{stem}.json", json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    cli.run(main)
