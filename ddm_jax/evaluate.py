"""Judges a trained run on held-out data: python -m ddm_jax.evaluate --workdir=work/radd_tiny.

A language model: the likelihood of text, with its standard errors, in nats per token, perplexity,
bits per token, byte and character, and all that decided them (docs/evaluation.md). A run on pairs:
its translations are compared with the references, BLEU with its signature, chrF, ROUGE-L,
diversity, time and network evaluations, beside what copying the source scores. Nothing in the run
is changed; a report is added under WORKDIR/evaluation/.
"""

import json
from collections.abc import Sequence

from absl import flags

from ddm_jax import cli, evaluate_pairs, evaluate_text, run_flags
from ddm_jax.errors import UserError
from ddm_jax.evaluation.corpora import DATA_ROOT, FORMS
from ddm_jax.evaluation.estimators import DRAWS
from ddm_jax.evaluation.protocols import PROTOCOLS
from ddm_jax.evaluation.report import table
from ddm_jax.training.record import read_record

_SPLIT = flags.DEFINE_enum(
    "split",
    None,
    ["validation", "test", "train"],
    "of the run's own data, of a set or of a hub; test by default, or what the protocol takes",
)
_NUM = flags.DEFINE_integer("num", None, "so many of the first blocks or pairs; all by default")
# of runs on pairs
_SOURCE = flags.DEFINE_string("source", "", "pairs:NAME to translate; the run's own by default")
# of language models
_DATASET = flags.DEFINE_string(
    "dataset",
    "",
    "text to evaluate on: a path or glob, hf:NAME, tfds:NAME, NAME of a set of --protocol, or "
    "NAME=TEXT, its rules on another copy; the run's own split by default",
)
_PROTOCOL = flags.DEFINE_enum(
    "protocol", None, list(PROTOCOLS), "how text is cut; by default as the run cuts its own"
)
_DATA_ROOT = flags.DEFINE_string("data_root", DATA_ROOT, "folder of the files of the protocols")
_DOCUMENTS = flags.DEFINE_enum(
    "documents", "file", list(FORMS), "what a document of a text file is; rows: lines with ends"
)
_ESTIMATOR = flags.DEFINE_string(
    "estimator",
    "auto",
    "objective that estimates the likelihood; the best one for the run by default",
)
_DRAWS = flags.DEFINE_integer("draws", DRAWS, "corruptions of each block: 1, or an even number")
_TIME_STEPS = flags.DEFINE_integer(
    "time_steps", None, "mdlm, md4: T of the bound in T steps, 0 for continuous time"
)

_RANGES = {
    "num": run_flags.POSITIVE,
    "draws": run_flags.POSITIVE,
    "time_steps": run_flags.NATURAL,
}
_OF_PAIRS = ("source", "sampler", "steps", "option")
_OF_TEXT = ("dataset", "protocol", "data_root", "documents", "estimator", "draws", "time_steps")


def main(argv: Sequence[str]) -> None:
    """Measures, writes and prints.

    Raises:
      UserError: a bad flag, no run, or no data.
    """
    del argv
    workdir = run_flags.check(_RANGES)
    config, tokenizer = read_record(workdir)
    if config.model.kind == "lm":
        _refuse(_OF_PAIRS, "the run is a language model, and has no pairs to translate")
        request = evaluate_text.Request(
            dataset=_DATASET.value,
            protocol=_PROTOCOL.value or "",
            split=_SPLIT.value,
            num=_NUM.value,
            data_root=_DATA_ROOT.value,
            documents=_DOCUMENTS.value,
            estimator=_ESTIMATOR.value,
            draws=_DRAWS.value,
            time_steps=_TIME_STEPS.value,
            weights=run_flags.WEIGHTS_OF.value,
            seed=run_flags.SEED.value,
            batch_size=run_flags.BATCH_SIZE.value,
        )
        report = evaluate_text.measure(workdir, config, tokenizer, request)
        beside = "the nats of every sequence"
    else:
        _refuse(_OF_TEXT, "the run translates pairs")
        if _SPLIT.value == "train":
            raise UserError("--split=train is not held out: give validation or test.")
        report = evaluate_pairs.measure(workdir, _SOURCE.value, _SPLIT.value or "test", _NUM.value)
        beside = "the translations"
    if report is None:
        return
    print(table({name: x for name, x in report.items() if name != "out"}))
    print(f"Wrote {report['out']} and {beside} beside it")
    if run_flags.JSON.value:
        print(json.dumps(report))


def _refuse(names: Sequence[str], why: str) -> None:
    for name in names:
        if flags.FLAGS[name].present:
            raise UserError(f"--{name} does not apply: {why}; leave it out.")


if __name__ == "__main__":
    cli.run(main)
