"""Drawing sequences from a trained run: one compiled program, batch by batch."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddm_jax.diffusion.process import Process
from ddm_jax.samplers.signature import SampleSpec, Stats


def make_spec(steps: int, temperature: float, top_k: int, top_p: float) -> SampleSpec:
    """As arrays, so that programs compiled for one serve all."""
    return SampleSpec(
        jnp.int32(steps), jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p)
    )


def make_program(sampler: Callable, apply: Callable, process: Process) -> Any:
    """The jitted sample(params, key, prompt, fixed, spec) -> (tokens int32[B, L], Stats)."""

    @jax.jit
    def sample(
        params: Any, key: Array, prompt: Array, fixed: Array, spec: SampleSpec
    ) -> tuple[Array, Stats]:
        return sampler(apply, params, key, prompt, fixed, process, spec)

    return sample


def draw(
    program: Callable,
    params: Any,
    key: Array,
    rows: Mapping[str, Array],
    spec: SampleSpec,
    num: int,
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """Yields batches until there are num sequences: (tokens int32[n, L], nfe int32[n], seconds).

    The last batch is drawn whole, of as many sequences as `rows` has, and then cut.
    """
    size = len(rows["prompt"])
    for start in range(0, num, size):
        batch_key = jax.random.fold_in(key, start // size)
        begin = time.perf_counter()
        tokens, stats = jax.device_get(program(params, batch_key, **rows, spec=spec))
        seconds = time.perf_counter() - begin
        yield tokens[: num - start], stats.nfe[: num - start], seconds
