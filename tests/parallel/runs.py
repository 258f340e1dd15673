"""A few training steps of a tiny model under a layout."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.config import (
    Config,
    DataConfig,
    LayoutConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    ProcessConfig,
    TrainConfig,
)
from ddm_jax.experiment import make_parts
from ddm_jax.parallel.layout_hooks import hooks_of
from ddm_jax.parallel.layouts import Layout, make_layout
from ddm_jax.settle import settle
from ddm_jax.training.programs import make_train_program

VOCAB, LENGTH, BATCH, STEPS = 126, 8, 32, 12
SOURCE_LENGTH = 12
MODEL = ModelConfig(width=32, depth=2, heads=8, mlp_ratio=2, cond_width=16, dropout=0.1)

DATA = DataConfig(length=LENGTH, source_length=SOURCE_LENGTH)
DEFAULT_PROCESS = ProcessConfig()


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a step is made of, its program, and an abstract state."""

    layout: Layout
    step: Callable
    init: Callable
    program: Any
    state: Any
    batch_size: int
    pairs: bool


def make(
    name: str,
    layout: str = "dp",
    devices: int = 1,
    parts: int = 1,
    axes: str = "",
    process: ProcessConfig = DEFAULT_PROCESS,
    batch_size: int = BATCH,
    **model: Any,
) -> Parts:
    """The training of objective `name`; its metrics have a checksum of all that the network saw."""
    model = dataclasses.replace(MODEL, **model)
    pairs = model.kind != "lm"
    config = settle(
        Config(
            model=model,
            data=dataclasses.replace(DATA, source="pairs:none") if pairs else DATA,
            objective=ObjectiveConfig(name=name),
            process=process,
            optim=OptimConfig(lr=1e-2, warmup_steps=2, weight_decay=0.1),
            train=TrainConfig(steps=100, batch_size=batch_size, microbatches=parts, log_every=1),
        )
    )
    on_mesh = make_layout(LayoutConfig(layout, axes), jax.devices()[:devices])
    forward, objective, network = make_parts(config, VOCAB, hooks_of(on_mesh))
    objective = dataclasses.replace(
        objective,
        loss=functools.partial(_spied, objective.loss),
        metrics=(*objective.metrics, "checksum"),
    )
    made = make_train_program(config, forward, objective, network, on_mesh)
    program = made.jitted_step()
    return Parts(on_mesh, made.step, made.init, program, made.state, batch_size, pairs)


def start(parts: Parts) -> Any:
    """A new state, with the shardings of the layout."""
    shardings = parts.layout.state_shardings(parts.state)
    return jax.jit(parts.init, out_shardings=shardings)(jax.random.key(0))


def batches(count: int, size: int = BATCH, pairs: bool = False) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)

    def text(length: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens, and which are real: uneven on purpose."""
        tokens = rng.integers(0, VOCAB, (size, length)).astype(np.int32)
        return tokens, np.arange(length) < rng.integers(3, length + 1, (size, 1))

    found = []
    for _ in range(count):
        batch = dict(zip(("tokens", "valid"), text(LENGTH), strict=True))
        if pairs:
            source = dict(zip(("source", "source_valid"), text(SOURCE_LENGTH), strict=True))
            batch |= {"seen": batch["valid"], **source}
        found.append(batch)
    return found


def compiled(parts: Parts) -> Any:
    batch = parts.layout.put_train_batch(batches(1, parts.batch_size, parts.pairs)[0])
    return parts.program.lower(parts.state, batch).compile()


def train(
    parts: Parts, steps: int = STEPS, program: Any = None, state: Any = None
) -> tuple[np.ndarray, np.ndarray, Any]:
    """(losses, checksums, last state) of `steps` steps; program and state are made if not given."""
    state = start(parts) if state is None else state
    program = program or compiled(parts)
    seen = []
    for batch in batches(steps, parts.batch_size, parts.pairs):
        state, metrics = program(state, parts.layout.put_train_batch(batch))
        seen.append((float(metrics["loss"]), float(metrics["checksum"])))
    losses, checksums = np.array(seen).T
    return losses, checksums, state


def _spied(
    loss: Callable, apply: Callable, params: Any, batch: Any, noise: Any, process: Any
) -> Any:
    seen = []

    def spy(params: Any, tokens: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(tokens)
        return apply(params, tokens, *args, **kwargs)

    out = loss(spy, params, batch, noise, process)
    # whole numbers below 2^24 in all: float32 sums them exactly, in any order
    weights = jnp.arange(1, LENGTH + 1) ** 2
    checksum = sum((x * weights).sum(axis=1) % 9973 for x in seen) + jnp.floor(noise.u * 2**16)
    return dataclasses.replace(
        out, metrics=out.metrics | {"checksum": checksum.astype(jnp.float32)}
    )
