"""A likelihood and all that determined it, as one flat record for JSON."""

import math
from collections.abc import Mapping
from typing import Any

from ddm_jax.evaluation.likelihood.corpora import Corpus, comparable
from ddm_jax.evaluation.likelihood.estimators import Estimator
from ddm_jax.evaluation.likelihood.monte_carlo import Likelihood, Mean
from ddm_jax.evaluation.reports import environment, perplexity, weights_hash
from ddm_jax.objectives.signature import EXACT
from ddm_jax.runs.run import Run


def identity(
    run: Run, weights: str, corpus: Corpus, estimator: Estimator, seed: int
) -> dict[str, Any]:
    """All that determines the numbers, and nothing else; partial results are kept under it."""
    return {
        "checkpoint": run.step,
        "weights": weights,
        "weights_sha256": weights_hash(run.params),
        "estimator": estimator.name,
        "options": estimator.options,
        "estimates": estimator.estimates,
        "levels": estimator.levels,
        "draws": estimator.draws,
        "groups": estimator.groups,
        "seed": seed,
        "blocks_sha256": corpus.fingerprint,
        "compute_dtype": run.config.model.compute_dtype,
    }


def numbers(found: Mean, corpus: Corpus, estimator: Estimator) -> dict[str, float | int]:
    """Nats, bits and perplexity, their errors, and what they are counted over; may be nan."""
    exact = estimator.estimates == EXACT
    tokens = int(corpus.blocks.valid.sum())
    size, characters = corpus.blocks.sizes.sum(axis=0)
    bits = found.nll / math.log(2)
    return {
        "nll": found.nll,
        "stderr": found.stderr,
        "mc_stderr": 0.0 if exact else found.mc_stderr,
        "text_stderr": found.stderr if exact else found.text_stderr,
        "ppl": perplexity(found.nll),
        "bits_per_token": bits,
        "bits_per_byte": bits * tokens / size if size else math.nan,
        "bits_per_char": bits * tokens / characters if characters else math.nan,
        "sequences": len(corpus.blocks.tokens),
        "tokens": tokens,
        "bytes": round(size),
        "characters": round(characters),
    }


def as_likelihood(found: Mean, corpus: Corpus, estimator: Estimator) -> Likelihood:
    """The main ones of these numbers."""
    values = numbers(found, corpus, estimator)
    return Likelihood(
        nll=found.nll,
        stderr=found.stderr,
        ppl=values["ppl"],
        bits_per_byte=None if math.isnan(values["bits_per_byte"]) else values["bits_per_byte"],
        tokens=int(values["tokens"]),
        sequences=int(values["sequences"]),
        draws=estimator.draws,
        estimates=estimator.estimates,
    )


def result_of(report: Mapping[str, Any]) -> str:
    """The result of a report of `measure_likelihood` in two lines: the number and its errors."""
    nll, stderr, ppl = (
        math.nan if report[name] is None else report[name] for name in ("nll", "stderr", "ppl")
    )
    found = Likelihood(
        nll=nll,
        stderr=stderr,
        ppl=ppl,
        bits_per_byte=report["bits_per_byte"],
        tokens=report["tokens"],
        sequences=report["sequences"],
        draws=report["draws"],
        estimates=report["estimates"],
    )
    draws, text = (
        "undefined" if report[name] is None else f"{report[name]:.4f}"
        for name in ("mc_stderr", "text_stderr")
    )
    return (
        f"{found.summary()}\n"
        f"  {found.size()}: {report['split']} of {report['dataset']}\n"
        f"  {report['weights']} weights of step {report['checkpoint']}; the error is {draws} by "
        f"the draws and {text} by the text"
    )


def conditions(run: Run, corpus: Corpus, estimator: Estimator) -> dict[str, Any]:
    """How the numbers were made, in addition to their `identity`."""
    protocol = corpus.protocol
    grid = "stratified within each group" if estimator.draws > 1 else "one for each sequence"
    return {
        "nfe_per_sequence": estimator.draws,
        "time_grid": "none" if estimator.levels == "none" else grid,
        "dataset": corpus.name,
        "split": corpus.split,
        "protocol": corpus.protocol_name,
        "comparable": comparable(corpus, run.tokenizer, run.config.data.length),
        "length": run.config.data.length,
        "eos": protocol.eos_words(),
        "wrap": protocol.wrap_words(),
        "detokeniser": corpus.detokeniser,
        "documents": corpus.documents,
        "dropped_tokens": corpus.blocks.dropped,
        "tokenizer": run.tokenizer.name,
        "tokenizer_sha256": run.tokenizer.fingerprint,
        "objective": run.config.objective.name,
        "process": run.config.process.name,
        "schedule": run.config.schedule.name,
        **environment(),
    }
