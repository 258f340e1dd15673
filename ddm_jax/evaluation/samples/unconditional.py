"""Draws from a trained run, kept in a file before they are judged, beside held-out text."""

import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ddm_jax.evaluation.judges.judge import Judge
from ddm_jax.evaluation.reports import weights_hash
from ddm_jax.evaluation.samples.mauve import mauve
from ddm_jax.evaluation.samples.quality import measure_quality, quality_table
from ddm_jax.experiment import make_sampler
from ddm_jax.generation.generate import make_program, make_spec
from ddm_jax.parallel.layouts import Layout
from ddm_jax.runs.files import read_metrics, write_atomically
from ddm_jax.runs.interrupt import Interrupt
from ddm_jax.runs.run import Run, with_sampler

BATCH_SIZE = 16
_LINE = ("text", "tokens", "nfe", "seconds")  # of the file; the settings follow


def evaluate_samples(
    run: Run,
    layout: Layout,
    num: int,
    steps: int | None,
    judge: Judge | None,
    reference_texts: Sequence[str],
    seed: int,
    folder: Path,
    features: Callable[[Sequence[str]], np.ndarray] | None = None,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Any] | None:
    """Draws `num` sequences from nothing and says how good they are.

    Args:
      run: with the sampler that its config names (trained.with_sampler sets another).
      layout: what the run was opened under; batch_size splits over its devices.
      steps: of the sampler; None for the run's.
      judge: see judges.open_judge; None leaves its numbers out.
      reference_texts: held-out text, as many and as long as the samples; may be none.
      folder: gets samples-STEP-SAMPLER-STEPS-KEY.jsonl, in lines such as ddm_jax.sample writes. The
        same settings go on from what is there, bit for bit.
      features: texts -> float32[n, d], such as minilm.open_minilm(), for MAUVE against
        reference_texts; None leaves it out.

    Returns:
      {"samples": sample_quality.quality, "reference": that of the reference texts, if any, "mauve":
      float, if asked for, "nfe", "seconds" a sequence, "path", and the settings}; None where Ctrl-C
      or SIGTERM came before there were `num` sequences.

    Raises:
      UserError: `steps` or the text does not fit.
    """
    settings, samples, path = draw_samples(run, layout, num, steps, seed, folder, batch_size)
    if len(samples) < num:
        print(
            f"Stopped after {len(samples)} of {num} sequences, which are kept: the same command "
            "goes on."
        )
        return None
    texts = [sample["text"] for sample in samples]
    tokens = [np.array(sample["tokens"], np.int32) for sample in samples]
    fingerprint = run.tokenizer.fingerprint
    report: dict[str, Any] = {"samples": measure_quality(texts, tokens, judge, fingerprint)}
    if reference_texts:
        real = [run.tokenizer.encode(text) for text in reference_texts]
        report["reference"] = measure_quality(reference_texts, real, judge, fingerprint)
        if features:
            report["mauve"] = mauve(features(texts), features(reference_texts))
    return report | {
        "nfe": float(np.mean([sample["nfe"] for sample in samples])),
        "seconds": float(np.mean([sample["seconds"] for sample in samples])),
        "path": str(path),
        **settings,
    }


def sample_table(report: Mapping[str, Any]) -> str:
    """The samples and the real text of `evaluate_samples`, and what they cost, in Markdown."""
    title = f"{report['sampler']}, {report['steps']} steps, NFE {report['nfe']:.1f}"
    rows = {title: report["samples"]}
    if "reference" in report:
        rows["real text"] = report["reference"]
    lines = [quality_table(rows)]
    if "mauve" in report:
        lines.append(f"\nMAUVE against the real text: {report['mauve']:.3f}")
    return "\n".join(lines)


def draw_samples(
    run: Run,
    layout: Layout,
    num: int,
    steps: int | None,
    seed: int,
    folder: Path,
    batch_size: int = BATCH_SIZE,
) -> tuple[dict[str, Any], list[dict[str, Any]], Path]:
    """(settings, the first `num` samples or fewer, their file); see `evaluate_samples`."""
    config = with_sampler(run.config, steps=steps)
    length, sampler = config.data.length, config.sampler
    settings = {
        "checkpoint": run.step,
        "weights_sha256": weights_hash(run.params),
        "sampler": sampler.name,
        "steps": sampler.steps,
        "temperature": sampler.temperature,
        "options": _options(sampler),
        "seed": seed,
        "batch_size": batch_size,
        "length": length,
        "tokenizer_sha256": run.tokenizer.fingerprint,
        "compute_dtype": config.model.compute_dtype,
    }
    key = hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"samples-{run.step:08d}-{sampler.name}-{sampler.steps}-{key}.jsonl"
    samples = [{name: line[name] for name in _LINE} for line in read_metrics(path)]
    samples = samples[: len(samples) // batch_size * batch_size]  # whole batches
    if len(samples) >= num:
        return settings, samples[:num], path

    empty = np.zeros((batch_size, length), np.int32)
    rows = layout.put_batch({"prompt": empty, "fixed": empty > 0})
    spec = make_spec(sampler.steps, sampler.temperature, 0, 1.0)
    seed_key, spec = jax.device_put((jax.random.key(seed), spec), layout.replicated)
    program = make_program(make_sampler(config), run.network.apply, run.process)
    program = program.lower(run.params, seed_key, **rows, spec=spec).compile()
    with Interrupt() as interrupt:
        while len(samples) < num and not interrupt.received:
            batch_key = jax.random.fold_in(seed_key, len(samples) // batch_size)
            begin = time.perf_counter()
            tokens, stats = jax.device_get(program(run.params, batch_key, **rows, spec=spec))
            seconds = (time.perf_counter() - begin) / batch_size
            for row, nfe in zip(tokens, stats.nfe, strict=True):
                values = (run.tokenizer.decode(row), row.tolist(), int(nfe), seconds)
                samples.append(dict(zip(_LINE, values, strict=True)))
            lines = [json.dumps(sample | settings) + "\n" for sample in samples]
            write_atomically(path, "".join(lines))
            print(f"{min(len(samples), num)}/{num} sequences", file=sys.stderr)
    return settings, samples[:num], path


def _options(sampler: Any) -> dict[str, Any]:
    """The options that this sampler has."""
    names = [field.name for field in dataclasses.fields(sampler) if field.default is None]
    values = {name: getattr(sampler, name) for name in names}
    return {name: x for name, x in values.items() if x is not None}
