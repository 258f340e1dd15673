"""How fast a run trains and samples, as seconds after compilation."""

import statistics
import time
from typing import Any

import jax
import numpy as np

from ddm_jax.experiment import Experiment, make_sampler
from ddm_jax.generation.generate import draw, make_program, make_spec
from ddm_jax.parallel.layouts import Layout
from ddm_jax.runs.run import Run, with_sampler
from ddm_jax.training.optimizer import make_optimizer
from ddm_jax.training.state import init_state
from ddm_jax.training.step import make_train_step, metric_names

_LATENCIES = 5


def sampling_speed(
    run: Run, layout: Layout, steps: int | None, tokens: int = 100_000, batch_size: int = 4
) -> dict[str, float | int | str]:
    """Draws so many tokens in batches, after one that does not count.

    Returns:
      batches_per_s, tokens_per_s, nfe (mean network evaluations of a sequence), batches (that were
      timed), latency_s (median seconds of a batch of one sequence), compile_s, sampler, steps.

    Raises:
      UserError: `steps` does not fit.
    """
    config = with_sampler(run.config, "auto", steps, None, [])
    length = config.data.length
    spec = make_spec(config.sampler.steps, config.sampler.temperature, 0, 1.0)
    key, spec = jax.device_put((jax.random.key(0), spec), layout.replicated)
    sampler = make_program(make_sampler(config), run.network.apply, run.process)

    def compiled(size: int) -> tuple[Any, dict[str, jax.Array]]:
        empty = np.zeros((size, length), np.int32)
        rows = layout.put_batch({"prompt": empty, "fixed": empty > 0})
        return sampler.lower(run.params, key, **rows, spec=spec).compile(), rows

    begin = time.perf_counter()
    program, rows = compiled(batch_size)
    compile_s = time.perf_counter() - begin
    batches = -(-tokens // (batch_size * length))
    found = list(draw(program, run.params, key, rows, spec, (batches + 1) * batch_size))[1:]
    seconds = sum(s for _, _, s in found)

    devices = layout.mesh.size
    alone, rows = compiled(devices)  # a sequence for each device
    timed = list(draw(alone, run.params, key, rows, spec, (_LATENCIES + 1) * devices))[1:]
    return {
        "batches_per_s": batches / seconds,
        "tokens_per_s": batches * batch_size * length / seconds,
        "nfe": float(np.mean([nfe for _, nfe, _ in found])),
        "batches": batches,
        "latency_s": statistics.median(s for _, _, s in timed),
        "compile_s": compile_s,
        "sampler": config.sampler.name,
        "steps": config.sampler.steps,
    }


def training_speed(experiment: Experiment, steps: int = 50) -> dict[str, float | int]:
    """Steps of training on one batch, from new weights, after one that does not count.

    Returns:
      train_batches_per_s, train_tokens_per_s, train_step_s, train_batch_size.
    """
    config, layout = experiment.config, experiment.layout
    optimizer = make_optimizer(config.optim, config.train.steps)
    names = metric_names(experiment.network, experiment.objective)

    def init(key: jax.Array) -> Any:
        return init_state(experiment.network, optimizer, key, names)

    key = jax.random.key(0)
    abstract = jax.eval_shape(init, key)
    step = make_train_step(
        config, experiment.network, experiment.objective, experiment.process, optimizer, layout
    )
    state = jax.jit(init, out_shardings=layout.state_shardings(abstract))(key)
    size = config.train.batch_size
    tokens, valid = experiment.data.blocks("train").read(layout.rows(size))
    batch = layout.put_train_batch({"tokens": tokens, "valid": valid})
    program = layout.program(step, abstract).lower(state, batch).compile()
    state, _ = program(state, batch)
    jax.block_until_ready(state)
    begin = time.perf_counter()
    for _ in range(steps):
        state, _ = program(state, batch)
    jax.block_until_ready(state)
    seconds = (time.perf_counter() - begin) / steps
    return {
        "train_step_s": seconds,
        "train_batches_per_s": 1 / seconds,
        "train_tokens_per_s": size * config.data.length / seconds,
        "train_batch_size": size,
    }
