"""How fast a run trains and samples, without compilation."""

import dataclasses
import statistics
import time

import jax
import numpy as np

from ddm_jax.data.sets.text import PreparedText
from ddm_jax.experiment import Experiment
from ddm_jax.generation.generate import compile_sampler, draw_batches
from ddm_jax.generation.prompts import empty
from ddm_jax.parallel.layouts import Layout
from ddm_jax.runs.run import Run, with_sampler
from ddm_jax.training.programs import make_train_program

_LATENCIES = 5


def sampling_speed(
    run: Run, layout: Layout, steps: int | None, tokens: int = 100_000, batch_size: int = 4
) -> dict[str, float | int | str]:
    """Times batches of unconditional samples, after one untimed batch.

    Args:
      run: opened under the layout.
      layout: its devices divide batch_size.
      steps: of the sampler; None for the run's.
      tokens: at least this many are drawn.
      batch_size: sequences per batch.

    Returns:
      batches_per_s, tokens_per_s, nfe (mean network evaluations of a sequence), batches (that were
      timed), latency_s (median seconds of a batch of one sequence per device), compile_s, sampler,
      steps.

    Raises:
      UserError: `steps` does not fit.
    """
    config = with_sampler(run.config, steps=steps)
    run = dataclasses.replace(run, config=config)
    length = config.data.length
    prompt = empty(length)

    sampler = compile_sampler(run, layout, batch_size)
    batches = -(-tokens // (batch_size * length))
    found = list(draw_batches(sampler, prompt, (batches + 1) * batch_size, seed=0))[1:]
    seconds = sum(batch.seconds for batch in found)

    devices = layout.mesh.size
    single = compile_sampler(run, layout, devices)  # one sequence on each device
    timed = list(draw_batches(single, prompt, (_LATENCIES + 1) * devices, seed=0))[1:]
    return {
        "batches_per_s": batches / seconds,
        "tokens_per_s": batches * batch_size * length / seconds,
        "nfe": float(np.mean([batch.nfe for batch in found])),
        "batches": batches,
        "latency_s": statistics.median(batch.seconds for batch in timed),
        "compile_s": sampler.compile_s,
        "sampler": config.sampler.name,
        "steps": config.sampler.steps,
    }


def training_speed(experiment: Experiment, steps: int = 50) -> dict[str, float | int]:
    """Times steps of training on one batch, from new weights, after one untimed step.

    Args:
      experiment: of a run on text.
      steps: number of timed steps.

    Returns:
      train_batches_per_s, train_tokens_per_s, train_step_s, train_batch_size.
    """
    config, data, layout = experiment.config, experiment.data, experiment.layout
    assert isinstance(data, PreparedText), "steps on pairs are not timed"
    program = make_train_program(
        config, experiment.process, experiment.objective, experiment.network, layout
    )
    state = program.jitted_init()(jax.random.key(0))
    size = config.train.batch_size
    tokens, valid = data.records("train").read(layout.local_rows(size))
    batch = layout.put_train_batch({"tokens": tokens, "valid": valid})
    step = program.jitted_step().lower(state, batch).compile()
    state, _ = step(state, batch)
    jax.block_until_ready(state)
    begin = time.perf_counter()
    for _ in range(steps):
        state, _ = step(state, batch)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - begin) / steps
    return {
        "train_step_s": seconds,
        "train_batches_per_s": 1 / seconds,
        "train_tokens_per_s": size * config.data.length / seconds,
        "train_batch_size": size,
    }
