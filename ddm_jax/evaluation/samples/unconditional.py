"""Samples of a trained run, saved to a file as they are drawn, and scored with held-out text."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddm_jax.evaluation.judges.judge import Judge
from ddm_jax.evaluation.reports import short_hash, weights_hash
from ddm_jax.evaluation.samples.mauve import mauve
from ddm_jax.evaluation.samples.quality import measure_quality
from ddm_jax.generation.generate import compile_sampler, draw_batches
from ddm_jax.generation.prompts import empty
from ddm_jax.generation.request import sampler_options
from ddm_jax.parallel.layouts import Layout
from ddm_jax.runs.files import read_metrics, write_atomically
from ddm_jax.runs.interrupt import Interrupt
from ddm_jax.runs.progress import ProgressBar
from ddm_jax.runs.run import Run
from ddm_jax.wording import counted

BATCH_SIZE = 16
# texts -> float32[n, d]
Features = Callable[[Sequence[str]], np.ndarray]
Line = dict[str, Any]
_FIELDS = ("text", "tokens", "nfe", "seconds")  # of a line of the file; the settings follow


@dataclasses.dataclass(frozen=True)
class Samples:
    """Sequences that a run drew from nothing.

    Attributes:
      lines: text, tokens, nfe and seconds of each, in the order of the random stream.
      settings: all that determines them.
      path: of the file that holds them.
    """

    lines: list[Line]
    settings: dict[str, Any]
    path: Path


def evaluate_samples(
    run: Run,
    layout: Layout,
    num: int,
    folder: Path,
    judge: Judge | None = None,
    references: Sequence[str] = (),
    features: Features | None = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Any] | None:
    """Draws `num` sequences from nothing and measures their quality.

    Args:
      run: its config determines the sampler (runs.run.with_sampler sets another one).
      layout: what the run was opened under; its devices divide batch_size.
      num: of sequences.
      folder: see `draw_samples`.
      judge: see judges.open.open_judge; None leaves its numbers out.
      references: held-out texts, as many and as long as the samples; may be empty.
      features: such as judges.minilm.open_minilm(), for MAUVE against the references; None leaves
        MAUVE out.
      seed: see `draw_samples`.
      batch_size: see `draw_samples`.

    Returns:
      {"samples": quality.measure_quality, "reference": that of the references, if any, "mauve": if
      there are features, "nfe" and "seconds" per sequence, "path", and the settings}; None where
      Ctrl-C or SIGTERM came before `num` sequences were drawn.

    Raises:
      UserError: there is nothing to judge.
    """
    drawn = draw_samples(run, layout, num, folder, seed, batch_size)
    if len(drawn.lines) < num:
        print(
            f"Stopped after {len(drawn.lines)} of {counted(num, 'sequence')}, which are saved. Run "
            "the same command to resume."
        )
        return None
    texts = [line["text"] for line in drawn.lines]
    tokens = [np.array(line["tokens"], np.int32) for line in drawn.lines]
    fingerprint = run.tokenizer.fingerprint
    report: dict[str, Any] = {"samples": measure_quality(texts, tokens, judge, fingerprint)}
    if references:
        real = [run.tokenizer.encode(text) for text in references]
        report["reference"] = measure_quality(references, real, judge, fingerprint)
        if features:
            report["mauve"] = mauve(features(texts), features(references))
    return report | {
        "nfe": float(np.mean([line["nfe"] for line in drawn.lines])),
        "seconds": float(np.mean([line["seconds"] for line in drawn.lines])),
        "path": str(drawn.path),
        **drawn.settings,
    }


def draw_samples(
    run: Run, layout: Layout, num: int, folder: Path, seed: int = 0, batch_size: int = BATCH_SIZE
) -> Samples:
    """Draws sequences from nothing, up to `num` or to Ctrl-C or SIGTERM, and saves every batch.

    Args:
      run: its config determines the sampler.
      layout: what the run was opened under; its devices divide batch_size.
      num: of sequences.
      folder: gets samples-STEP-SAMPLER-STEPS-KEY.jsonl, in lines such as ddm_jax.sample writes. The
        same settings resume from the file, bit for bit.
      seed: the same seed and batch size draw the same sequences.
      batch_size: sequences drawn at once.
    """
    sampler = run.config.sampler
    settings = _settings(run, seed, batch_size)
    name = f"samples-{run.step:08d}-{sampler.name}-{sampler.steps}-{short_hash(settings)}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    lines: list[Line] = [{name: line[name] for name in _FIELDS} for line in read_metrics(path)]
    done = len(lines) // batch_size  # whole batches
    lines = lines[: done * batch_size]
    if len(lines) < num:
        program = compile_sampler(run, layout, batch_size)
        whole = -(-num // batch_size) * batch_size  # the file has whole batches, too
        prompt = empty(run.config.data.length)
        with Interrupt() as interrupt, ProgressBar(num, len(lines)) as progress:
            for batch in draw_batches(program, prompt, whole, seed, first_batch=done):
                lines += batch.lines(run.tokenizer, batch_size)
                texts = [json.dumps(line | settings) + "\n" for line in lines]
                write_atomically(path, "".join(texts))
                progress.update(min(len(lines), num))
                if interrupt.received:
                    break
    return Samples(lines[:num], settings, path)


def _settings(run: Run, seed: int, batch_size: int) -> dict[str, Any]:
    """All that determines the samples; a hash of it is part of the file's name."""
    sampler = run.config.sampler
    return {
        "checkpoint": run.step,
        "weights_sha256": weights_hash(run.params),
        "sampler": sampler.name,
        "steps": sampler.steps,
        "temperature": sampler.temperature,
        "options": sampler_options(sampler),
        "seed": seed,
        "batch_size": batch_size,
        "length": run.config.data.length,
        "tokenizer_sha256": run.tokenizer.fingerprint,
        "compute_dtype": run.config.model.compute_dtype,
    }
