"""Translations of held-out pairs by a trained run, as a report for ddm_jax.evaluate."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddm_jax.config import Config
from ddm_jax.data.open import open_or_prepare, source_of
from ddm_jax.data.sets.pairs import PreparedPairs
from ddm_jax.data.sources import pair_files
from ddm_jax.errors import UserError
from ddm_jax.evaluation.reports import write_report
from ddm_jax.evaluation.text_scores import bleu, scores
from ddm_jax.generation.request import SamplingRequest
from ddm_jax.generation.translation import (
    Translations,
    open_translator,
    read_translation_config,
    settings,
    translate,
)
from ddm_jax.runs.files import write_new
from ddm_jax.runs.progress import say
from ddm_jax.wording import counted

Pairs = Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class PairsRequest:
    """The pairs whose sources a run translates, and how.

    Attributes:
      source: pairs:NAME; "" is a split of the run's own pairs.
      split: of the run's own pairs: "validation" or "test".
      num: the number of pairs, from the first; None: all.
      weights: one of runs.run.WEIGHTS.
      sampling: the sampler, its options, seed and batch size, which is 64 targets by default.
    """

    source: str = ""
    split: str = "test"
    num: int | None = None
    weights: str = "ema"
    sampling: SamplingRequest = dataclasses.field(default_factory=SamplingRequest)


def measure_pairs(workdir: Path, request: PairsRequest) -> dict[str, Any]:
    """The report, which is also written to WORKDIR/evaluation/, with every translation.

    Args:
      workdir: of the run, which translates pairs; nothing in it is changed.
      request: the pairs, and how to translate them.

    Returns:
      text_scores.scores, bleu_copy (BLEU of the sources themselves), what the translations cost,
      how they were made, and `out`, the path of the report.

    Raises:
      UserError: there is no run or no pair, all sources are too long, or the request does not fit.
    """
    config = read_translation_config(workdir, request.sampling)
    pairs, name = _read(config, request)
    run, translator = open_translator(workdir, request.sampling, request.weights)
    fitting = [pair for pair in pairs if translator.fits(pair[0])]
    left_out = len(pairs) - len(fitting)
    if not fitting:
        raise UserError(
            f"Every source of {name} is longer than the run's config.data.source_length="
            f"{config.data.source_length}: shorten them."
        )
    sources, references = (list(side) for side in zip(*fitting, strict=True))
    say(
        f"Translating {counted(len(sources), 'source')} of {name}; left out {left_out}, longer "
        f"than the run's config.data.source_length={config.data.source_length}"
    )
    made = translate(translator, run.params, sources, request.sampling.seed, name)
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
        **settings(run, request.sampling.seed),
    }
    sampler = run.config.sampler
    folder, stem = workdir / "evaluation", f"{run.step:08d}-{sampler.name}-{sampler.steps}"
    folder.mkdir(exist_ok=True)
    write_new(folder / f"{stem}.jsonl", _lines(fitting, made))
    return write_report(folder, stem, report)


def result_of(report: Mapping[str, Any]) -> str:
    """The result of a report of `measure_pairs` in two lines."""
    return (
        f"BLEU {report['bleu']:.2f}, chrF {report['chrf']:.2f}, ROUGE-L {report['rouge_l']:.2f}; "
        f"copying the source has BLEU {report['bleu_copy']:.2f}\n"
        f"  for {counted(report['pairs'], 'pair')} of {report['data']}, {report['weights']} "
        f"weights of step {report['checkpoint']}, {report['nfe']:.1f} evaluations and "
        f"{report['seconds_per_source']:.2g} s each"
    )


def _read(config: Config, request: PairsRequest) -> tuple[list[tuple[str, str]], str]:
    """The pairs of a request, and what to call them."""
    if request.source:
        pairs, name = list(pair_files.read(request.source)), request.source
    else:
        prepared = open_or_prepare(config.data)
        assert isinstance(prepared, PreparedPairs), "see read_translation_config"
        pairs = prepared.texts(request.split)
        name = f"{request.split} of {source_of(config.data, request.split)}"
    if not pairs:
        raise UserError(
            f"There are no pairs in {name}: give others with --source=pairs:NAME or --split."
        )
    return pairs[: request.num], name


def _lines(pairs: Pairs, made: Translations) -> str:
    """JSONL with a line for each pair."""
    rows = zip(pairs, made.texts, made.candidates, made.nfe, strict=True)
    lines = [
        {
            "source": source,
            "reference": reference,
            "translation": text,
            "candidates": candidates,
            "nfe": nfe,
        }
        for (source, reference), text, candidates, nfe in rows
    ]
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
