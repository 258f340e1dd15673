"""Validation while training: the bound on held-out text, and samples a person can read."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ddm_jax.data.loader import eval_batches
from ddm_jax.evaluation.likelihood import Bound, estimate, make_bound
from ddm_jax.experiment import Experiment
from ddm_jax.samplers import SampleSpec
from ddm_jax.training.writers import write_atomically


def describe(bound: Bound, step: int) -> str:
    """One line on a validation."""
    return (
        f"step {step}: validation {bound.nll:.4f} +- {bound.stderr:.4f} nats per token "
        f"({bound.estimates}), perplexity {bound.ppl:.2f}, {bound.bits_per_byte:.3f} bits per byte"
    )


def make_validation(
    experiment: Experiment, workdir: Path
) -> Callable[[Any, int], tuple[Bound, list[str]]]:
    """Builds validate(ema, step) -> (bound on held-out text, samples) of the averaged parameters.

    The samples are written to workdir/samples/STEP.txt. The corruptions and the keys are the same
    at every step.
    """
    config = experiment.config
    bound = jax.jit(
        make_bound(
            experiment.network, experiment.estimator.loss, experiment.process, config.eval.draws
        )
    )
    sample = jax.jit(
        functools.partial(
            experiment.sampler,
            experiment.network.apply,
            process=experiment.process,
            spec=SampleSpec(config.sampler.steps),
        )
    )
    empty = jnp.zeros((config.sampler.num, config.data.length), jnp.int32)

    def validate(ema: Any, step: int) -> tuple[Bound, list[str]]:
        batches = eval_batches(
            experiment.data,
            "validation",
            batch_size=config.eval.batch_size,
            limit=config.eval.sequences,
        )
        found = estimate(
            bound,
            ema,
            (experiment.layout.put_batch(batch) for batch in batches),
            config.eval.draws,
            experiment.data.bytes_per_token("validation"),
            experiment.estimator.estimates,
        )
        key = jax.random.key(config.seed)
        tokens, stats = sample(ema, key, empty, jnp.zeros(empty.shape, bool))
        texts = [experiment.data.tokenizer.decode(row) for row in jax.device_get(tokens)]
        folder = workdir / "samples"
        folder.mkdir(exist_ok=True)
        lines = [
            f"=== sample {i + 1} of {len(texts)}, step {step}, {int(nfe)} network evaluations\n"
            f"{text}\n"
            for i, (text, nfe) in enumerate(zip(texts, jax.device_get(stats.nfe), strict=True))
        ]
        write_atomically(folder / f"{step:08d}.txt", "\n".join(lines))
        return found, texts

    return validate
