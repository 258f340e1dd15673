"""Our training step, as ddm_jax.main compiles it, for comparison with others."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array

from ddm_jax.config import Config, defaults, resolve
from ddm_jax.diffusion.process import Process
from ddm_jax.experiment import make_parts
from ddm_jax.models.network import Network
from ddm_jax.objectives.signature import Objective
from ddm_jax.parallel.layouts import Layout, dp
from ddm_jax.settle import settle
from ddm_jax.training.programs import make_train_program
from ddm_jax.training.state import TrainState


@dataclass(frozen=True)
class Ours:
    """A training step with one fixed batch of random tokens.

    Attributes:
      step: the pure function (state, batch) -> (state, metrics).
      program: the compiled step; it donates the state.
      start: () -> a new state, placed as the layout needs it.
      batch: the batch.
    """

    step: Callable
    program: Any
    start: Callable[[], TrainState]
    batch: dict[str, Array]

    @property
    def temporary_bytes(self) -> int:
        """Bytes that the program takes on a device in addition to arguments and results."""
        return self.program.memory_analysis().temp_size_in_bytes

    @property
    def reserved_bytes(self) -> int:
        """All bytes that the program takes on a device."""
        memory = self.program.memory_analysis()
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        return memory.argument_size_in_bytes + results + self.temporary_bytes

    def turn(self, steps: int) -> Callable[[], float]:
        """run() -> seconds per step over `steps` steps, continuing from the previous call.

        One step is done before, to warm up.
        """
        state, _ = self.program(self.start(), self.batch)

        def run() -> float:
            nonlocal state
            jax.block_until_ready(state)
            begin = time.perf_counter()
            for _ in range(steps):
                state, _ = self.program(state, self.batch)
            jax.block_until_ready(state)
            return (time.perf_counter() - begin) / steps

        return run


def our_step(
    config: Config,
    process: Process,
    objective: Objective,
    network: Network,
    length: int,
    layout: Layout | None = None,
) -> Ours:
    """Compiles the training step.

    Args:
      config: settled.
      process: the forward process.
      objective: to train.
      network: made for the layout.
      length: tokens of a sequence.
      layout: None for the first device only.
    """
    layout = layout or dp(jax.devices()[:1])
    program = make_train_program(config, process, objective, network, layout)
    init = program.jitted_init()
    shape = (config.train.batch_size, length)
    tokens = np.random.default_rng(0).integers(0, network.vocab_size, shape).astype(np.int32)
    batch = layout.put_train_batch({"tokens": tokens, "valid": np.ones(shape, bool)})
    compiled = program.jitted_step().lower(program.state, batch).compile()
    return Ours(program.step, compiled, lambda: init(jax.random.key(0)), batch)


def radd_parts(sizes: Mapping[str, int]) -> tuple[Config, Process, Objective, Network]:
    """(config, process, objective, network) of RADD's t-DCE in float32.

    Args:
      sizes: width, depth, heads, length, batch (sequences) and vocab (tokens).
    """
    config = defaults()
    for name in ("width", "depth", "heads"):
        config.model[name] = sizes[name]
    config.data.length, config.train.batch_size = sizes["length"], sizes["batch"]
    config.objective.name = "radd_t_dce"
    settled = settle(resolve(config))
    return settled, *make_parts(settled, sizes["vocab"])
