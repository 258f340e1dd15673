"""The train step as a program: made for a layout, and compiled for each shape of a batch."""

import ctypes
import json
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax import Array

from ddm_jax.config import Config
from ddm_jax.costs.memory import check_fits, device_memory, in_words, out_of_memory
from ddm_jax.costs.program import memory_bytes, program_costs
from ddm_jax.diffusion.process import Process
from ddm_jax.models.network import Network
from ddm_jax.objectives.signature import Batch, Objective
from ddm_jax.parallel import processes
from ddm_jax.parallel.layouts import Layout
from ddm_jax.runs.files import write_atomically
from ddm_jax.runs.progress import Progress
from ddm_jax.training.memory_settings import activation_share, step_settings
from ddm_jax.training.optimizer import make_optimizer
from ddm_jax.training.state import TrainState, init_state
from ddm_jax.training.step import Metrics, make_train_step, metric_names


@dataclass(frozen=True)
class TrainProgram:
    """The two functions of training, and the type of what they pass on.

    Attributes:
      init: key[] -> a fresh state.
      step: (state, batch) -> (state, metrics), to be jitted: see `make_train_step`.
      state: the state without arrays.
      layout: the layout of the step.
    """

    init: Callable[[Array], TrainState]
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    state: TrainState
    layout: Layout

    def jitted_init(self) -> Callable[[Array], TrainState]:
        """`init`, jitted; the arrays are where the layout wants them."""
        return jax.jit(self.init, out_shardings=self.layout.state_shardings(self.state))

    def jitted_step(self) -> jax.stages.Wrapped:
        """`step`, jitted for global arrays; it donates the state (`Layout.program`)."""
        return self.layout.program(self.step, self.state)


def make_train_program(
    config: Config, process: Process, objective: Objective, network: Network, layout: Layout
) -> TrainProgram:
    """The training of a settled config's parts, not compiled yet.

    Args:
      config: settled.
      process: of `ddm_jax.experiment.make_parts`, like the following two.
      objective: the loss.
      network: made for the layout.
      layout: how state and batches are spread over devices.
    """
    optimizer = make_optimizer(config.optim, config.train.steps)
    names = metric_names(network, objective)

    def init(key: Array) -> TrainState:
        return init_state(network, optimizer, key, names)

    step = make_train_step(config, network, objective, process, optimizer, layout)
    return TrainProgram(init, step, jax.eval_shape(init, jax.random.key(0)), layout)


class CompiledSteps:
    """The train step, compiled for each shape of a batch when the first such batch comes.

    Process 0 writes program.json: what the compiler reports of the program compiled last.
    """

    def __init__(
        self,
        config: Config,
        program: TrainProgram,
        workdir: Path,
        progress: Progress,
        watch: processes.Watchdog,
    ):
        self._config, self._program = config, program
        self._step = program.jitted_step()
        self._path = workdir / "program.json"
        self._progress, self._watch = progress, watch
        self._compiled: dict[tuple[int, ...], jax.stages.Compiled] = {}

    def get(self, state: TrainState, batch: Mapping[str, Array]) -> jax.stages.Compiled:
        """The program for batches of this shape: (state, batch) -> (state, metrics).

        Raises:
          UserError: it needs more memory than its devices have.
        """
        shape = batch["tokens"].shape
        if shape not in self._compiled:
            self._compiled[shape] = self._compile(state, batch)
        return self._compiled[shape]

    def _compile(self, state: TrainState, batch: Mapping[str, Array]) -> jax.stages.Compiled:
        *rows, length = batch["tokens"].shape
        size = f"{math.prod(rows)} x {length} tokens"
        what = f"The train step for {size}"
        self._progress.say(f"Compiling the step for {size} ...")
        begin = time.perf_counter()
        with (
            self._watch.slow(),
            out_of_memory(what, lambda: step_settings(self._config, self._program.layout)),
        ):
            compiled = self._step.lower(state, batch).compile()
            release_freed_memory()
        seconds = time.perf_counter() - begin
        self._progress.leave_out(seconds)
        needs = memory_bytes(compiled)
        rest = f"; it needs {in_words(needs['peak'])} of memory" if needs else ""
        rest += " on each device" if needs and self._program.layout.mesh.size > 1 else ""
        self._progress.say(f"Compiled the step in {seconds:.1f} s{rest}")
        if processes.is_first():
            report: dict[str, Any] = {"batch": size, "compile_s": seconds}
            devices = self._program.layout.mesh.size
            report |= program_costs(compiled, devices, warn=self._progress.say)
            write_atomically(self._path, json.dumps(report, indent=2) + "\n")
        if needs:
            self._check_memory(what, needs)
        return compiled

    def _check_memory(self, what: str, needs: Mapping[str, int]) -> None:
        layout = self._program.layout
        memory = device_memory(layout.mesh.local_devices)

        def settings() -> str:
            assert memory is not None, "what is unknown is not too small"
            share = activation_share(needs, memory, self._program.state, layout)
            return step_settings(self._config, layout, share)

        check_fits(what, needs, memory, settings, warn=self._progress.say)


def release_freed_memory() -> None:
    """Returns freed host memory to the system where the C library can (glibc); else does nothing.

    A compiler frees hundreds of megabytes that malloc would keep, in addition to the step's own.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
