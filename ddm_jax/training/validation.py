"""Validation while training: the bound on held-out text, and samples a person can read."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from ddm_jax.data.loading.loader import eval_batches
from ddm_jax.evaluation.likelihood.monte_carlo import Likelihood, estimate, make_bound
from ddm_jax.evaluation.text_scores import bleu
from ddm_jax.experiment import Experiment
from ddm_jax.generation.translation import translate
from ddm_jax.generation.translator import make_translator
from ddm_jax.parallel import processes
from ddm_jax.runs.files import write_atomically
from ddm_jax.samplers.signature import SampleSpec, Stats


@dataclass(frozen=True)
class Validation:
    """The bound on held-out text, some samples with their headings, and scores of translations."""

    bound: Likelihood
    samples: list[tuple[str, str]]
    scores: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """What a line of metrics.jsonl says of it."""
        return self.bound.metrics() | self.scores

    def describe(self, step: int) -> str:
        """One line."""
        line = f"step {step}: validation {self.bound.summary()}"
        return f"{line}, BLEU {self.scores['bleu']:.2f}" if self.scores else line


def make_validation(experiment: Experiment, workdir: Path) -> Callable[[Any, int], Validation]:
    """Builds validate(ema, step) -> Validation of the averaged parameters.

    Process 0 writes the samples to workdir/samples/STEP.txt. The corruptions and the keys are the
    same at every step.
    """
    config = experiment.config
    bound = jax.jit(
        make_bound(
            experiment.network, experiment.estimator.loss, experiment.process, config.eval.draws
        ),
        out_shardings=experiment.layout.replicated,
    )
    show = _texts(experiment) if experiment.network.encode is None else _translations(experiment)

    def validate(ema: Any, step: int) -> Validation:
        batches = eval_batches(
            experiment.data,
            "validation",
            batch_size=config.eval.batch_size,
            limit=config.eval.sequences,
            rows=experiment.layout.rows,
        )
        found = estimate(
            bound,
            ema,
            (experiment.layout.put_batch(batch) for batch in batches),
            config.eval.draws,
            experiment.data.bytes_per_token("validation"),
            experiment.estimator.estimates,
        )
        samples, scores = show(ema)
        lines = [
            f"=== sample {i + 1} of {len(samples)}, step {step}, {heading}\n{text}\n"
            for i, (heading, text) in enumerate(samples)
        ]
        if processes.is_first():
            folder = workdir / "samples"
            folder.mkdir(exist_ok=True)
            write_atomically(folder / f"{step:08d}.txt", "\n".join(lines))
        return Validation(found, samples, scores)

    return validate


Shown = tuple[list[tuple[str, str]], dict[str, float]]


def _texts(experiment: Experiment) -> Callable[[Any], Shown]:
    """Samples from nothing."""
    config = experiment.config
    empty = np.zeros((config.sampler.num, config.data.length), np.int32)
    spec = SampleSpec(config.sampler.steps, config.sampler.temperature)

    @functools.partial(jax.jit, out_shardings=experiment.layout.replicated)
    def sample(ema: Any, prompt: Array, fixed: Array) -> tuple[Array, Stats]:
        key = jax.random.key(config.seed)
        apply = experiment.network.apply
        return experiment.sampler(apply, ema, key, prompt, fixed, experiment.process, spec)

    def show(ema: Any) -> Shown:
        tokens, stats = jax.device_get(sample(ema, empty, np.zeros(empty.shape, bool)))
        samples = [
            (f"{nfe} network evaluations", experiment.data.tokenizer.decode(row))
            for row, nfe in zip(tokens, stats.nfe, strict=True)
        ]
        return samples, {}

    return show


def _translations(experiment: Experiment) -> Callable[[Any], Shown]:
    """Translations of the first held-out sources; BLEU of them, and of the sources themselves."""
    config = experiment.config
    translator = make_translator(
        experiment.network,
        experiment.process,
        experiment.sampler,
        config,
        experiment.data.tokenizer,
        experiment.layout,
    )
    pairs = experiment.data.texts("validation")
    pairs = [p for p in pairs if translator.fits(p[0])][: config.eval.translations]
    sources, references = (list(side) for side in zip(*pairs, strict=True))

    def show(ema: Any) -> Shown:
        made = translate(translator, ema, sources, config.seed, nested=True)
        samples = [
            (
                f"{nfe} network evaluations",
                f"source:      {source}\nreference:   {reference}\ntranslation: {text}",
            )
            for source, reference, text, nfe in zip(
                sources, references, made.texts, made.nfe, strict=True
            )
        ]
        copied, _ = bleu(sources, references)
        scores = {"bleu": bleu(made.texts, references)[0], "bleu_copy": copied}
        return samples[: config.sampler.num], scores

    return show
