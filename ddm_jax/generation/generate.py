"""Drawing sequences from a trained run: one compiled program, batch by batch.

    sampler = compile_sampler(run, layout, batch_size)
    for batch in draw_batches(sampler, prompt, num, seed):
        ...  # batch.tokens, batch.nfe, batch.seconds

The run's config decides the sampler and its options; `runs.run.with_sampler` sets others.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddm_jax.costs.memory import lower_batch, out_of_memory
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.diffusion.process import Process
from ddm_jax.experiment import make_sampler
from ddm_jax.generation.prompts import Prompt
from ddm_jax.models.network import Params
from ddm_jax.models.readout import Readout
from ddm_jax.parallel.layouts import Layout
from ddm_jax.runs.run import Run
from ddm_jax.samplers.signature import Sample, SampleSpec, Stats


@dataclass(frozen=True)
class CompiledSampler:
    """The sampler of a run, compiled for one batch size and sequence length.

    Attributes:
      program: sample(params, key, prompt=, fixed=, spec=) -> (tokens int32[B, L], Stats).
      params: the weights, laid out as `layout` says.
      spec: steps, temperature, top_k and top_p, on the devices.
      layout: what the batch is split over.
      batch_size: B, sequences per call.
      compile_s: seconds that compilation took.
    """

    program: Sample
    params: Params
    spec: SampleSpec
    layout: Layout
    batch_size: int
    compile_s: float


@dataclass(frozen=True)
class Batch:
    """The sequences of one batch, on the host.

    Attributes:
      tokens: int32[n, L], n at most the batch size.
      nfe: int32[n], network evaluations of each sequence.
      seconds: wall-clock time of the whole batch, compilation excluded.
    """

    tokens: np.ndarray
    nfe: np.ndarray
    seconds: float

    def lines(self, tokenizer: Tokenizer, batch_size: int) -> list[dict[str, Any]]:
        """What a file of samples says of each sequence: text, tokens, nfe and seconds."""
        return [
            {
                "text": tokenizer.decode(row),
                "tokens": row.tolist(),
                "nfe": int(nfe),
                "seconds": self.seconds / batch_size,
            }
            for row, nfe in zip(self.tokens, self.nfe, strict=True)
        ]


def compile_sampler(
    run: Run, layout: Layout, batch_size: int, top_k: int = 0, top_p: float = 1.0
) -> CompiledSampler:
    """Compiles the sampler that `run.config` names, for `batch_size` sequences of its length.

    Args:
      run: opened under `layout`.
      layout: its devices divide batch_size.
      batch_size: sequences per batch.
      top_k: draws from the `top_k` best tokens; 0 for all.
      top_p: draws from the best tokens of this total probability.

    Raises:
      UserError: a device has run out of memory.
    """
    config = run.config
    spec = make_spec(config.sampler.steps, config.sampler.temperature, top_k, top_p)
    key, spec = jax.device_put((jax.random.key(0), spec), layout.replicated)
    empty = np.zeros((batch_size, config.data.length), np.int32)
    rows = layout.put_batch({"prompt": empty, "fixed": empty > 0})
    program = make_program(make_sampler(config), run.network.apply, run.process)
    begin = time.perf_counter()
    with out_of_memory(f"A batch of {batch_size} sequences", lambda: lower_batch(batch_size)):
        compiled = program.lower(run.params, key, **rows, spec=spec).compile()
    compile_s = time.perf_counter() - begin
    return CompiledSampler(compiled, run.params, spec, layout, batch_size, compile_s)


def draw_batches(
    sampler: CompiledSampler, prompt: Prompt, num: int, seed: int, first_batch: int = 0
) -> Iterator[Batch]:
    """Draws sequences 0 to num - 1, batch by batch; batch i has the key fold_in(key(seed), i).

    Args:
      sampler: of `compile_sampler`.
      prompt: int32[L] and bool[L], the same for all sequences, or [num, L], one for each.
      num: sequences. The last batch is drawn whole and then cut.
      seed: the same seed and batch size draw the same sequences.
      first_batch: begins at this batch, to resume.

    Raises:
      UserError: a device has run out of memory.
    """
    size = sampler.batch_size
    key = jax.device_put(jax.random.key(seed), sampler.layout.replicated)
    for number in range(first_batch, -(-num // size)):
        start = number * size
        rows = sampler.layout.put_batch(_rows(prompt, start, size))
        batch_key = jax.random.fold_in(key, number)
        begin = time.perf_counter()
        with out_of_memory(f"A batch of {size} sequences", lambda: lower_batch(size)):
            out = sampler.program(sampler.params, batch_key, **rows, spec=sampler.spec)
            tokens, stats = jax.device_get(out)
        seconds = time.perf_counter() - begin
        yield Batch(tokens[: num - start], stats.nfe[: num - start], seconds)


def make_spec(steps: int, temperature: float, top_k: int, top_p: float) -> SampleSpec:
    """The spec as arrays, so that one compiled program serves all values."""
    return SampleSpec(
        jnp.int32(steps), jnp.float32(temperature), jnp.int32(top_k), jnp.float32(top_p)
    )


def make_program(sampler: Sample, apply: Callable[..., Readout], process: Process) -> Any:
    """The jitted sample(params, key, prompt, fixed, spec) -> (tokens int32[B, L], Stats)."""

    @jax.jit
    def sample(
        params: Params, key: Array, prompt: Array, fixed: Array, spec: SampleSpec
    ) -> tuple[Array, Stats]:
        return sampler(apply, params, key, prompt, fixed, process, spec)

    return sample


def _rows(prompt: Prompt, start: int, size: int) -> dict[str, np.ndarray]:
    """The prompts of `size` sequences; beyond the last one there is nothing to draw."""
    rows = {"prompt": prompt.tokens, "fixed": prompt.fixed}
    if prompt.tokens.ndim == 1:
        return {name: np.tile(x, (size, 1)) for name, x in rows.items()}
    part = {name: x[start : start + size] for name, x in rows.items()}
    padding = ((0, size - len(part["prompt"])), (0, 0))
    return {
        "prompt": np.pad(part["prompt"], padding),
        "fixed": np.pad(part["fixed"], padding, constant_values=True),
    }
