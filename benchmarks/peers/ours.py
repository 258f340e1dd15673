"""Our training step, as ddm_jax.main compiles it: what the others are timed against."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax import Array

from ddm_jax.config import Config
from ddm_jax.models.network import Network
from ddm_jax.objectives.signature import Objective
from ddm_jax.parallel.layouts import Layout, dp
from ddm_jax.training.optimizer import make_optimizer
from ddm_jax.training.state import TrainState, init_state
from ddm_jax.training.step import make_train_step, metric_names


@dataclass(frozen=True)
class Ours:
    """A training step on one batch of random tokens that stays the same.

    step: the pure function (state, batch) -> (state, metrics). program: the same, compiled; it
    donates the state. start: () -> a new state, where the layout wants it.
    """

    step: Callable
    program: Any
    start: Callable[[], TrainState]
    batch: dict[str, Array]

    @property
    def temporary_bytes(self) -> int:
        """What the program takes of a device beside what it is given and gives."""
        return self.program.memory_analysis().temp_size_in_bytes

    @property
    def reserved_bytes(self) -> int:
        """All that the program takes of a device."""
        memory = self.program.memory_analysis()
        results = memory.output_size_in_bytes - memory.alias_size_in_bytes
        return memory.argument_size_in_bytes + results + self.temporary_bytes

    def turn(self, steps: int) -> Callable[[], float]:
        """run() -> seconds a step over so many, on from where the last run was; one is done."""
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
    process: Any,
    objective: Objective,
    network: Network,
    length: int,
    layout: Layout | None = None,
) -> Ours:
    """Compiles it.

    length: tokens of a sequence. layout: the one that the network was made for; the first device
    alone if None.
    """
    layout = layout or dp(jax.devices()[:1])
    optimizer = make_optimizer(config.optim, config.train.steps)
    names = metric_names(network, objective)
    step = make_train_step(config, network, objective, process, optimizer, layout)

    def new() -> TrainState:
        return init_state(network, optimizer, jax.random.key(0), names)

    abstract = jax.eval_shape(new)
    start = jax.jit(new, out_shardings=layout.state_shardings(abstract))
    shape = (config.train.batch_size, length)
    tokens = np.random.default_rng(0).integers(0, network.vocab_size, shape).astype(np.int32)
    batch = layout.put_train_batch({"tokens": tokens, "valid": np.ones(shape, bool)})
    program = layout.program(step, abstract).lower(abstract, batch).compile()
    return Ours(step, program, start, batch)
