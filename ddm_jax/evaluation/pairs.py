"""Scores of translations of held-out pairs by a trained run, for ddm_jax.evaluate."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddm_jax import run_flags
from ddm_jax.config import Config
from ddm_jax.data.open import open_or_prepare
from ddm_jax.data.sources import pair_files
from ddm_jax.errors import UserError
from ddm_jax.evaluation.text_scores import bleu, scores
from ddm_jax.generation.translation import (
    Translations,
    open_translator,
    read_translation_config,
    settings,
    translate,
)
from ddm_jax.runs.files import write_new


def measure(workdir: Path, source: str, split: str, num: int | None) -> dict[str, Any]:
    """Translates, scores and writes: the report, with `out`, where it was written.

    Args:
      workdir: of the run.
      source: pairs:NAME; "" is the split of the run's own pairs.
      split: "validation" or "test".
      num: of the first pairs; None: all.

    Raises:
      UserError: a bad flag, no run, or no pairs.
    """
    request = run_flags.sampling_request()
    config = read_translation_config(workdir, request)
    pairs, name = _read(config, source, split, num)
    run, translator = open_translator(workdir, request, run_flags.FLAGS.weights)
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
    made = translate(translator, run.params, sources, request.seed, name)
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
        **settings(run, request.seed),
    }
    return report | {"out": str(_write(workdir, report, fitting, made))}


def _read(
    config: Config, source: str, split: str, num: int | None
) -> tuple[list[tuple[str, str]], str]:
    """The pairs that the flags name, and what to call them."""
    if source:
        pairs, name = list(pair_files.read(source)), source
    else:
        pairs = open_or_prepare(config.data).texts(split)
        name = f"{split} of {config.data.source}"
    if not pairs:
        raise UserError(
            f"There are no pairs in {name}: give others with --source=pairs:NAME or --split."
        )
    return pairs[:num], name


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
