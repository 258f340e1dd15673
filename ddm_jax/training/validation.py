"""Validation while training: the bound on held-out text, and samples to read."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import numpy as np
from jax import Array

from ddm_jax.data.loading.loader import eval_batches
from ddm_jax.data.sets.pairs import PreparedPairs
from ddm_jax.evaluation.likelihood.monte_carlo import Likelihood, estimate, make_bound
from ddm_jax.evaluation.text_scores import bleu
from ddm_jax.experiment import Experiment
from ddm_jax.generation.translation import translate
from ddm_jax.generation.translator import make_translator
from ddm_jax.models.network import Params
from ddm_jax.parallel import processes
from ddm_jax.runs.files import write_atomically
from ddm_jax.samplers.signature import SampleSpec, Stats

# samples as (heading, text), and scores by name
Shown = tuple[list[tuple[str, str]], dict[str, float]]


@dataclass(frozen=True)
class Validation:
    """A validation of the averaged weights.

    Attributes:
      bound: the likelihood of held-out text.
      samples: (heading, text) of each.
      scores: of translations, by name; empty for models of text.
    """

    bound: Likelihood
    samples: list[tuple[str, str]]
    scores: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """Its numbers in a line of metrics.jsonl."""
        return self.bound.metrics() | self.scores

    def describe(self, step: int) -> str:
        """One line of text."""
        line = f"step {step}: validation {self.bound.summary()}"
        return f"{line}, BLEU {self.scores['bleu']:.2f}" if self.scores else line


def make_validation(experiment: Experiment, workdir: Path) -> Callable[[Params, int], Validation]:
    """Builds validate(ema, step) -> Validation of the averaged parameters.

    Process 0 writes the samples to workdir/samples/STEP.txt. The corruptions and the keys are the
    same at every step.
    """
    config, data = experiment.config, experiment.data
    estimates = experiment.estimator.estimates
    assert estimates is not None, "settle chooses an estimator"
    bound = jax.jit(
        make_bound(
            experiment.network, experiment.estimator.loss, experiment.process, config.eval.draws
        ),
        out_shardings=experiment.layout.replicated,
    )
    if isinstance(data, PreparedPairs):
        show = _make_translations(experiment, data)
    else:
        show = _make_texts(experiment)

    def validate(ema: Params, step: int) -> Validation:
        batches = eval_batches(
            data,
            "validation",
            batch_size=config.eval.batch_size,
            limit=config.eval.sequences,
            rows=experiment.layout.local_rows,
        )
        found = estimate(
            bound,
            ema,
            (experiment.layout.put_batch(batch) for batch in batches),
            config.eval.draws,
            data.bytes_per_token("validation"),
            estimates,
        )
        samples, scores = show(ema)
        if processes.is_first():
            _write_samples(workdir / "samples", samples, step)
        return Validation(found, samples, scores)

    return validate


def _write_samples(folder: Path, samples: Sequence[tuple[str, str]], step: int) -> None:
    parts = [
        f"=== sample {i + 1} of {len(samples)}, step {step}, {heading}\n{text}\n"
        for i, (heading, text) in enumerate(samples)
    ]
    folder.mkdir(exist_ok=True)
    write_atomically(folder / f"{step:08d}.txt", "\n".join(parts))


def _make_texts(experiment: Experiment) -> Callable[[Params], Shown]:
    """Builds show(ema), which draws unconditional samples."""
    config = experiment.config
    empty = np.zeros((config.sampler.num, config.data.length), np.int32)
    spec = SampleSpec(config.sampler.steps, config.sampler.temperature)

    @functools.partial(jax.jit, out_shardings=experiment.layout.replicated)
    def sample(ema: Params, prompt: Array, fixed: Array) -> tuple[Array, Stats]:
        key = jax.random.key(config.seed)
        apply = experiment.network.apply
        return experiment.sampler(apply, ema, key, prompt, fixed, experiment.process, spec)

    def show(ema: Params) -> Shown:
        tokens, stats = jax.device_get(sample(ema, empty, np.zeros(empty.shape, bool)))
        samples = [
            (f"{nfe} network evaluations", experiment.data.tokenizer.decode(row))
            for row, nfe in zip(tokens, stats.nfe, strict=True)
        ]
        return samples, {}

    return show


def _make_translations(experiment: Experiment, data: PreparedPairs) -> Callable[[Params], Shown]:
    """Builds show(ema), which translates the first held-out sources.

    Its scores are BLEU of the translations, and of the sources themselves.
    """
    config = experiment.config
    translator = make_translator(
        experiment.network,
        experiment.process,
        experiment.sampler,
        config,
        data.tokenizer,
        experiment.layout,
    )
    pairs = data.texts("validation")
    pairs = [p for p in pairs if translator.fits(p[0])][: config.eval.translations]
    sources, references = (list(side) for side in zip(*pairs, strict=True))

    def show(ema: Params) -> Shown:
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
