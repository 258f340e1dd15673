"""Judges a trained run on held-out data: python -m ddm_jax.evaluate --workdir=work/radd_tiny.

A language model: the likelihood of text, with its standard errors, in nats per token, perplexity,
bits per token, byte and character, and all that decided them (docs/evaluation.md). A run on pairs:
its translations are compared with the references, BLEU with its signature, chrF, ROUGE-L,
diversity, time and network evaluations, beside what copying the source scores. With --samples or
--infill: how good the text is that a language model writes. Nothing in the run is changed; a report
is added under WORKDIR/evaluation/.
"""

import json
from collections.abc import Sequence

from absl import flags

from ddm_jax import cli, run_flags
from ddm_jax.errors import UserError
from ddm_jax.evaluation import pairs as evaluate_pairs
from ddm_jax.evaluation.judges.open import HELP
from ddm_jax.evaluation.likelihood.corpora import DATA_ROOT, FORMS
from ddm_jax.evaluation.likelihood.estimators import DRAWS
from ddm_jax.evaluation.likelihood.measure import LikelihoodRequest, measure_likelihood
from ddm_jax.evaluation.likelihood.protocols import PROTOCOLS
from ddm_jax.evaluation.reports import two_columns
from ddm_jax.evaluation.samples import measure as evaluate_samples
from ddm_jax.generation.request import NATURAL, POSITIVE
from ddm_jax.runs.record import read_record

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    run_flags.define_flags()
    flags.DEFINE_enum(
        "split",
        None,
        ["validation", "test", "train"],
        "of the run's own data, of a set or of a hub; test by default, or what the protocol takes",
    )
    flags.DEFINE_integer("num", None, "so many of the first blocks or pairs; all by default")
    # of runs on pairs
    flags.DEFINE_string("source", "", "pairs:NAME to translate; the run's own by default")
    # of language models
    flags.DEFINE_string(
        "dataset",
        "",
        "text to evaluate on: a path or glob, hf:NAME, tfds:NAME, NAME of a set of --protocol, or "
        "NAME=TEXT, its rules on another copy; the run's own split by default",
    )
    flags.DEFINE_enum(
        "protocol", None, list(PROTOCOLS), "how text is cut; by default as the run cuts its own"
    )
    flags.DEFINE_string("data_root", DATA_ROOT, "folder of the files of the protocols")
    flags.DEFINE_enum(
        "documents", "file", list(FORMS), "what a document of a text file is; rows: lines with ends"
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
    # of what a language model writes
    flags.DEFINE_integer("samples", 0, "draw and score so many sequences")
    flags.DEFINE_integer(
        "infill", 0, "take spans out of so many held-out blocks, draw them again and compare"
    )
    flags.DEFINE_string("judge", "", f"whose perplexity samples are given: {HELP}")
    flags.DEFINE_bool("mauve", False, "compare the samples with held-out text by MAUVE")


_RANGES = {
    "samples": NATURAL,
    "infill": NATURAL,
    "num": POSITIVE,
    "draws": POSITIVE,
    "time_steps": NATURAL,
}
_OF_SAMPLERS = ("sampler", "steps", "option")
_OF_TEXT = ("dataset", "protocol", "data_root", "documents", "estimator", "draws", "time_steps")
_OF_SAMPLES = ("samples", "infill", "judge", "mauve")


def main(argv: Sequence[str]) -> None:
    """Measures, writes and prints.

    Raises:
      UserError: a bad flag, no run, or no data.
    """
    del argv
    workdir = run_flags.check(_RANGES)
    config, _ = read_record(workdir)
    if config.model.kind != "lm":
        _refuse((*_OF_TEXT, *_OF_SAMPLES), "the run translates pairs")
        if FLAGS.split == "train":
            raise UserError("--split=train is not held out: give validation or test.")
        report = evaluate_pairs.measure(workdir, FLAGS.source, FLAGS.split or "test", FLAGS.num)
        beside = "the translations"
    elif FLAGS.samples or FLAGS.infill:
        _refuse(("source", "num", *_OF_TEXT), "--samples and --infill draw text")
        request = evaluate_samples.Request(
            FLAGS.samples, FLAGS.infill, FLAGS.judge, FLAGS.mauve, FLAGS.split or "test"
        )
        report = evaluate_samples.measure(workdir, request)
        beside = "every sequence"
    else:
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
        beside = "the nats of every sequence"
    if report is None:
        return
    if "drawn" in report or "infilling" in report:
        print(evaluate_samples.tables(report))
    else:
        print(two_columns({name: x for name, x in report.items() if name != "out"}))
    print(f"Wrote {report['out']} and {beside} beside it")
    if FLAGS.json:
        print(json.dumps(report))


def _refuse(names: Sequence[str], why: str) -> None:
    for name in names:
        if FLAGS[name].present:
            raise UserError(f"--{name} does not apply: {why}; leave it out.")


if __name__ == "__main__":
    cli.run(main, define_flags)
