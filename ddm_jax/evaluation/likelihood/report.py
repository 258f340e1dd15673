"""A likelihood and all that decided it, as one flat record."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ddm_jax.evaluation.likelihood.corpora import Corpus, published
from ddm_jax.evaluation.likelihood.estimators import Estimator
from ddm_jax.evaluation.likelihood.monte_carlo import Mean
from ddm_jax.objectives.signature import EXACT
from ddm_jax.runs.record import git_revision, versions
from ddm_jax.runs.run import Run


def weights_hash(params: Any) -> str:
    """sha256 (hex) of all arrays, by their paths."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def identity(
    run: Run, weights: str, corpus: Corpus, estimator: Estimator, seed: int
) -> dict[str, Any]:
    """All that decides the numbers, and nothing else."""
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


def result(found: Mean, corpus: Corpus, estimator: Estimator) -> dict[str, Any]:
    """The numbers: nats, bits, perplexity, their errors and what they are counted over."""
    exact = estimator.estimates == EXACT
    tokens = int(corpus.blocks.valid.sum())
    size, characters = corpus.blocks.sizes.sum(axis=0)
    bits = found.nll / math.log(2)
    return {
        "nll": found.nll,
        "stderr": found.stderr,
        "mc_stderr": 0.0 if exact else found.mc_stderr,
        "text_stderr": found.stderr if exact else found.text_stderr,
        "ppl": math.exp(found.nll) if found.nll < 700 else math.inf,
        "bits_per_token": bits,
        "bits_per_byte": bits * tokens / size if size else math.nan,
        "bits_per_char": bits * tokens / characters if characters else math.nan,
        "sequences": len(corpus.blocks.tokens),
        "tokens": tokens,
        "bytes": round(size),
        "characters": round(characters),
    }


def settings(run: Run, corpus: Corpus, estimator: Estimator) -> dict[str, Any]:
    """How the numbers were made, beside what `identity` says."""
    protocol = corpus.protocol
    grid = "stratified within each group" if estimator.draws > 1 else "one for each sequence"
    return {
        "nfe_per_sequence": estimator.draws,
        "time_grid": "none" if estimator.levels == "none" else grid,
        "dataset": corpus.name,
        "split": corpus.split,
        "protocol": corpus.protocol_name,
        "comparable": published(corpus, run.tokenizer, run.config.data.length),
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
        "devices": sorted({device.device_kind for device in jax.devices()}),
        "versions": versions(),
        "git_revision": git_revision(),
    }


def to_json(report: Any) -> Any:
    """For JSON, which has no nan: None where a number cannot be told, also in what it holds."""
    if isinstance(report, Mapping):
        return {name: to_json(x) for name, x in report.items()}
    if isinstance(report, list | tuple):
        return [to_json(x) for x in report]
    return None if isinstance(report, float) and not math.isfinite(report) else report


def table(report: Mapping[str, Any]) -> str:
    """Two columns; a record in the record on rows of its own."""
    rows: dict[str, str] = {}
    for name, x in report.items():
        if isinstance(x, Mapping):
            rows[name] = ", ".join(f"{k} {v}" for k, v in x.items()) or "none"
        elif isinstance(x, float):
            rows[name] = f"{x:.5g}"
        else:
            rows[name] = "cannot be told" if x is None else str(x)
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
