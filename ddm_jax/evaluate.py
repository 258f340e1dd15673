"""Measures the likelihood of held-out text, or the quality of texts or translations.

    python -m ddm_jax.evaluate --workdir=work/radd_tiny
    python -m ddm_jax.evaluate --workdir=work/radd_tiny --samples=16
    python -m ddm_jax.evaluate --workdir=work/rdm_tiny --num=64

A language model: the likelihood of text, with its standard errors, in nats per token, perplexity,
bits per token, byte and character, and all that determined them (docs/evaluation.md). With
--samples or --infill: the quality of the text that it writes. A run on pairs: its translations are
compared with the references by BLEU with its signature, chrF, ROUGE-L and diversity, with time,
network evaluations and the BLEU of copying the source. Nothing in the run is changed; a report is
added under WORKDIR/evaluation/.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from ddm_jax import cli, run_flags
from ddm_jax.errors import UserError
from ddm_jax.evaluation import pairs
from ddm_jax.evaluation.judges.open import HELP
from ddm_jax.evaluation.likelihood.corpora import DATA_ROOT, FORMS
from ddm_jax.evaluation.likelihood.estimators import DRAWS
from ddm_jax.evaluation.likelihood.measure import LikelihoodRequest, measure_likelihood
from ddm_jax.evaluation.likelihood.protocols import PROTOCOLS
from ddm_jax.evaluation.likelihood.report import result_of
from ddm_jax.evaluation.samples.measure import SamplesRequest, format_samples, measure_samples
from ddm_jax.generation.request import NATURAL, POSITIVE
from ddm_jax.runs.interrupt import exit_code
from ddm_jax.runs.record import read_record

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    run_flags.define_flags()
    with cli.group("Data"):
        flags.DEFINE_enum(
            "split",
            None,
            ["validation", "test", "train"],
            "of the run's own data, of a set or of a hub; test by default, or what the protocol "
            "takes",
        )
        flags.DEFINE_integer(
            "num", None, "number of blocks or pairs, from the first; all by default"
        )
    with cli.group("Runs on pairs"):
        flags.DEFINE_string("source", "", "pairs:NAME to translate; the run's own by default")
    with cli.group("Likelihood of language models"):
        _define_likelihood_flags()
    with cli.group("Samples of language models"):
        flags.DEFINE_integer("samples", 0, "number of sequences to draw and score")
        flags.DEFINE_integer(
            "infill",
            0,
            "number of held-out blocks whose spans are removed, drawn again and compared",
        )
        flags.DEFINE_string(
            "judge", "", f"language model that gives the perplexity of samples: {HELP}"
        )
        flags.DEFINE_bool("mauve", False, "compare the samples with held-out text by MAUVE")


def _define_likelihood_flags() -> None:
    flags.DEFINE_string(
        "dataset",
        "",
        "text to evaluate on: a path or glob, hf:NAME, tfds:NAME, NAME of a set of --protocol, or "
        "NAME=TEXT, its rules on another copy; a split of the run's own text by default",
    )
    flags.DEFINE_enum(
        "protocol", None, list(PROTOCOLS), "how text is cut; by default as the run cuts its own"
    )
    flags.DEFINE_string("data_root", DATA_ROOT, "folder of the files of the protocols")
    flags.DEFINE_enum(
        "documents",
        "file",
        list(FORMS),
        "what a document of a text file is; rows: lines with their ends",
    )
    flags.DEFINE_string(
        "estimator",
        "auto",
        "objective that estimates the likelihood; the best one for the run by default",
    )
    flags.DEFINE_integer("draws", DRAWS, "corruptions of each block: 1, or an even number")
    flags.DEFINE_integer(
        "time_steps", None, "mdlm, md4: T of the bound in T steps, 0 for continuous time"
    )


_RANGES = {
    "samples": NATURAL,
    "infill": NATURAL,
    "draws": POSITIVE,
    "time_steps": NATURAL,
}
_OF_SAMPLERS = ("sampler", "steps", "option")
_OF_TEXT = ("dataset", "protocol", "data_root", "documents", "estimator", "draws", "time_steps")
_OF_SAMPLES = ("samples", "infill", "judge", "mauve")


def main(argv: Sequence[str]) -> int:
    """Evaluates, writes and prints the report.

    Returns:
      The exit code: 0, or that of the signal that stopped it.

    Raises:
      UserError: a bad flag, no run, or no data.
    """
    del argv
    workdir = run_flags.check(_RANGES)
    config, _ = read_record(workdir)
    if config.model.kind != "lm":
        report: dict[str, Any] | None = _pairs(workdir)
    elif FLAGS.samples or FLAGS.infill:
        report = _samples(workdir)
    else:
        report = _likelihood(workdir)
    if report is None:
        return exit_code()
    if FLAGS.json:
        print(json.dumps(report))
    return 0


def _pairs(workdir: Path) -> dict[str, Any]:
    _refuse((*_OF_TEXT, *_OF_SAMPLES), "the run translates pairs")
    if FLAGS.split == "train":
        raise UserError("--split=train is not held out: give validation or test.")
    request = pairs.PairsRequest(
        source=FLAGS.source,
        split=FLAGS.split or "test",
        num=FLAGS.num,
        weights=FLAGS.weights,
        sampling=run_flags.sampling_request(),
    )
    report = pairs.measure_pairs(workdir, request)
    _print(report, pairs.result_of, "the translations")
    return report


def _samples(workdir: Path) -> dict[str, Any] | None:
    _refuse(("source", "num", *_OF_TEXT), "--samples and --infill draw text")
    request = SamplesRequest(
        samples=FLAGS.samples,
        infill=FLAGS.infill,
        judge=FLAGS.judge,
        mauve=FLAGS.mauve,
        split=FLAGS.split or "test",
        weights=FLAGS.weights,
        sampling=run_flags.sampling_request(),
    )
    report = measure_samples(workdir, request)
    _print(report, format_samples, "every sequence")
    return report


def _likelihood(workdir: Path) -> dict[str, Any] | None:
    _refuse(("source",), "the run is a language model, and has no pairs to translate")
    _refuse((*_OF_SAMPLERS, *_OF_SAMPLES), "a likelihood draws no text without --samples=N")
    request = LikelihoodRequest(
        dataset=FLAGS.dataset,
        protocol=FLAGS.protocol or "",
        split=FLAGS.split,
        num=FLAGS.num,
        data_root=FLAGS.data_root,
        documents=FLAGS.documents,
        estimator=FLAGS.estimator,
        draws=FLAGS.draws,
        time_steps=FLAGS.time_steps,
        weights=FLAGS.weights,
        seed=FLAGS.seed,
        batch_size=FLAGS.batch_size,
    )
    report = measure_likelihood(workdir, request)
    _print(report, result_of, "the nats of every sequence")
    return report


def _print(
    report: dict[str, Any] | None, formatted: Callable[[Mapping[str, Any]], str], with_it: str
) -> None:
    """Prints where a report was written together with what, and at the end its result."""
    if report is not None:
        print(f"Wrote all details to {report['out']}, and {with_it} next to it\n")
        print(formatted(report))


def _refuse(names: Sequence[str], why: str) -> None:
    for name in names:
        if FLAGS[name].present:
            raise UserError(f"--{name} does not apply: {why}; leave it out.")


if __name__ == "__main__":
    cli.run(main, define_flags)
