"""The compiled programs that translate: the most likely lengths, and targets of these lengths."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.config import Config
from ddm_jax.data.pair_encoding import encode
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.diffusion.process import Process
from ddm_jax.errors import UserError
from ddm_jax.models.network import Network, Params
from ddm_jax.parallel.layouts import Layout
from ddm_jax.samplers.signature import Sample, SampleSpec


class TimedProgram:
    """A jitted function that counts its seconds of compiling and of running.

    It is compiled once for each shape of its rows.
    """

    def __init__(self, function: Callable, layout: Layout):
        # every process reads all of the result
        self._function = jax.jit(function, out_shardings=layout.replicated)
        self._compiled: dict[tuple[tuple[int, ...], ...], Callable] = {}
        self.seconds = self.compile_s = 0.0

    def __call__(self, *args: Any, **rows: Array) -> Any:
        """The result on the host."""
        shapes = tuple(x.shape for x in rows.values())
        if shapes not in self._compiled:
            begin = time.perf_counter()
            self._compiled[shapes] = self._function.lower(*args, **rows).compile()
            self.compile_s += time.perf_counter() - begin
        begin = time.perf_counter()
        out = jax.device_get(self._compiled[shapes](*args, **rows))
        self.seconds += time.perf_counter() - begin
        return out


@dataclass(frozen=True)
class Translator:
    """What `translate` needs of a run, apart from the weights.

    Attributes:
      config: settled; data, sampler and eval.batch_size are read.
      tokenizer: of both sides.
      layout: what a batch is split over.
      lengths: (params, source=, source_valid=) -> the most likely lengths, best first, int32[B, K].
      draw: (params, key data, spec, **rows) -> targets int32[B, N], nfe int32[B], score float32[B].
    """

    config: Config
    tokenizer: Tokenizer
    layout: Layout
    lengths: TimedProgram
    draw: TimedProgram

    @property
    def from_left(self) -> bool:
        """Whether a target is drawn from left to right and ends at its own EOS."""
        return self.config.sampler.name == "autoregressive"

    def fits(self, source: str) -> bool:
        """Whether a source is short enough."""
        return len(encode(self.tokenizer, source.strip())) < self.config.data.source_length


def make_translator(
    network: Network,
    process: Process,
    sampler: Sample,
    config: Config,
    tokenizer: Tokenizer,
    layout: Layout,
) -> Translator:
    """The translator of a settled config, of which data, sampler and eval.batch_size are read."""
    if network.encode is None:
        raise UserError(
            f"config.model.kind={config.model.kind!r} reads no source: give a run on pairs."
        )
    encode_source = network.encode

    def lengths(params: Params, source: Array, source_valid: Array) -> Array:
        """The most likely lengths, best first: int32[B, K]."""
        logits = encode_source(params, source, source_valid).length_logits
        length = jnp.arange(logits.shape[1])
        possible = (length >= 1) & (length < config.data.length)
        number = min(config.sampler.lengths, config.data.length - 1)
        return jax.lax.top_k(jnp.where(possible, logits, -jnp.inf), number)[1]

    def draw(
        params: Params,
        key_data: Array,
        spec: SampleSpec,
        source: Array,
        source_valid: Array,
        prompt: Array,
        fixed: Array,
        seen: Array,
    ) -> tuple[Array, Array, Array]:
        """Targets int32[B, N], with nfe int32[B] and score float32[B]."""
        key = jax.random.wrap_key_data(key_data)
        memory = encode_source(params, source, source_valid)
        apply = functools.partial(network.apply, memory=memory)
        if config.sampler.name != "autoregressive":  # that one sees what it has drawn
            apply = functools.partial(apply, seen=seen)
        tokens, stats = sampler(apply, params, key, prompt, fixed, process, spec)
        return tokens, stats.nfe, jnp.zeros(len(tokens)) if stats.score is None else stats.score

    return Translator(
        config, tokenizer, layout, TimedProgram(lengths, layout), TimedProgram(draw, layout)
    )
