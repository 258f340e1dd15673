"""Targets of sources: lengths first, then a sample at each of them, then the best candidate.

The length head proposes the most likely lengths (Ghazvininejad et al. 2019, arXiv:1904.09324, as in
RDM, Zheng et al. 2023, arXiv:2302.05737); every candidate is drawn at its own length, and one is
chosen by what the network thought of it, or by minimum Bayes risk. Sources are grouped into the
shapes of training, so that few programs are compiled.
"""

import functools
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from tqdm import tqdm

from ddm_jax.config import Config
from ddm_jax.data.pair_encoding import buckets, decode, encode
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.diffusion.process import Process
from ddm_jax.errors import UserError
from ddm_jax.generation.candidates import mbr
from ddm_jax.models.network import Network
from ddm_jax.parallel.layouts import Layout
from ddm_jax.samplers.signature import SampleSpec

Rows = dict[str, np.ndarray]


@dataclass(frozen=True)
class Translations:
    """For each source, in order: the text that was chosen, all candidates, and what they cost.

    nfe: evaluations of the decoder, over all candidates of a source. seconds: all of it, but for
    compiling, which took compile_s.
    """

    texts: list[str]
    candidates: list[list[str]]
    nfe: list[int]
    seconds: float
    compile_s: float


@dataclass(frozen=True)
class Translator:
    """What `translate` needs of a run; `lengths` and `draw` are compiled once a shape."""

    config: Config
    tokenizer: Tokenizer
    layout: Layout
    lengths: "_Timed"
    draw: "_Timed"

    @property
    def from_left(self) -> bool:
        """Whether a target grows token by token and says itself where it ends."""
        return self.config.sampler.name == "autoregressive"

    def fits(self, source: str) -> bool:
        """Whether a source is short enough."""
        return len(encode(self.tokenizer, source.strip())) < self.config.data.source_length


@dataclass(frozen=True)
class _Item:
    """A target to be drawn: of which source, how long, and (S, N), the room for both."""

    source: int
    length: int
    shape: tuple[int, int]


def make_translator(
    network: Network,
    process: Process,
    sampler: Callable,
    config: Config,
    tokenizer: Tokenizer,
    layout: Layout,
) -> Translator:
    """config: a settled one, of which data, sampler and eval.batch_size are read."""

    def lengths(params: Any, source: Array, source_valid: Array) -> Array:
        """The most likely lengths, best first: int32[B, K]."""
        logits = network.encode(params, source, source_valid).length_logits
        length = jnp.arange(logits.shape[1])
        possible = (length >= 1) & (length < config.data.length)
        number = min(config.sampler.lengths, config.data.length - 1)
        return jax.lax.top_k(jnp.where(possible, logits, -jnp.inf), number)[1]

    def draw(
        params: Any,
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
        memory = network.encode(params, source, source_valid)
        apply = functools.partial(network.apply, memory=memory)
        if config.sampler.name != "autoregressive":  # that one sees what it has drawn
            apply = functools.partial(apply, seen=seen)
        tokens, stats = sampler(apply, params, key, prompt, fixed, process, spec)
        return tokens, stats.nfe, jnp.zeros(len(tokens)) if stats.score is None else stats.score

    return Translator(config, tokenizer, layout, _Timed(lengths, layout), _Timed(draw, layout))


def translate(
    translator: Translator, params: Any, sources: Sequence[str], seed: int = 0, name: str = "source"
) -> Translations:
    """Translates; an empty source has an empty target and costs nothing.

    Args:
      translator: of a run.
      params: its weights.
      sources: texts of one line.
      seed: the same seed, sources and eval.batch_size draw the same targets.
      name: what to call the sources in an error.

    Raises:
      UserError: a source is longer than data.source_length.
    """
    config, tokenizer, layout = translator.config, translator.tokenizer, translator.layout
    timed = (translator.lengths, translator.draw)
    before = [(t.seconds, t.compile_s) for t in timed]
    ids = _encoded(translator, sources, name)
    items = [x for x in _items(translator, params, ids) for _ in range(config.sampler.candidates)]
    items.sort(key=lambda item: item.shape)
    # on the host, from where every process gives its devices the same
    spec = SampleSpec(
        np.int32(config.sampler.steps),
        np.float32(config.sampler.temperature),
        stop=np.int32(tokenizer.eos_id),
    )
    found: dict[int, list[tuple[str, int, float]]] = {i: [] for i in range(len(sources))}
    with tqdm(
        total=len(items), desc="translate", disable=not sys.stderr.isatty(), leave=False
    ) as bar:
        for number, batch in enumerate(_batches(items, config.eval.batch_size)):
            key = jax.random.fold_in(jax.random.key(seed), number)
            rows = _source_rows([ids[x.source] for x in batch], batch[0].shape[0], tokenizer)
            rows |= _target_rows(translator, batch)
            key_data = np.asarray(jax.random.key_data(key))
            drawn = translator.draw(
                params, key_data, spec, **_put(layout, rows, config.eval.batch_size)
            )
            for item, tokens, nfe, score in zip(batch, *drawn, strict=False):
                found[item.source].append((decode(tokenizer, tokens), int(nfe), float(score)))
            bar.update(len(batch))
    candidates = [[text for text, *_ in of] or [""] for of in found.values()]
    return Translations(
        texts=[_chosen(config, of) for of in found.values()],
        candidates=candidates,
        nfe=[sum(nfe for _, nfe, _ in of) for of in found.values()],
        seconds=sum(t.seconds - b[0] for t, b in zip(timed, before, strict=True)),
        compile_s=sum(t.compile_s - b[1] for t, b in zip(timed, before, strict=True)),
    )


def _chosen(config: Config, found: Sequence[tuple[str, int, float]]) -> str:
    if not found:
        return ""
    if config.sampler.selection == "mbr":
        return found[mbr([text for text, *_ in found])][0]
    return max(found, key=lambda x: x[2])[0]


def _encoded(translator: Translator, sources: Sequence[str], name: str) -> list[np.ndarray]:
    """Ids of each source with its EOS, which is all of an empty one."""
    eos, longest = translator.tokenizer.eos_id, translator.config.data.source_length
    texts = [text.strip() for text in sources]
    ids = [encode(translator.tokenizer, text) if text else [] for text in texts]
    ids = [np.append(np.asarray(x, np.int32), np.int32(eos)) for x in ids]
    for line, x in enumerate(ids, start=1):
        if len(x) > longest:
            raise UserError(
                f"Line {line} of {name} has {len(x)} tokens with its EOS, more than the run's "
                f"config.data.source_length={longest}: shorten or split it."
            )
    return ids


def _items(translator: Translator, params: Any, ids: Sequence[np.ndarray]) -> Iterator[_Item]:
    """The sources that are not empty, each at its most likely lengths."""
    data, size = translator.config.data, translator.config.eval.batch_size
    shapes = buckets(data.length, data.source_length, data.buckets)

    def shape(x: np.ndarray, n: int) -> tuple[int, int]:
        return next((s, t) for s, t in shapes if s >= len(x) and t > n)

    full = [i for i, x in enumerate(ids) if len(x) > 1]
    if translator.from_left:
        whole = data.length
        yield from (_Item(i, whole, (shape(ids[i], 0)[0], whole)) for i in full)
        return
    full.sort(key=lambda i: shape(ids[i], 0))
    for (room, _), group in itertools.groupby(full, lambda i: shape(ids[i], 0)):
        for part in _parts(group, size):
            rows = _source_rows([ids[i] for i in part], room, translator.tokenizer)
            likely = translator.lengths(params, **_put(translator.layout, rows, size))
            for i, lengths in zip(part, likely, strict=False):
                yield from (_Item(i, int(n), shape(ids[i], n)) for n in lengths)


def _parts(group: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Lists of `size` at most."""
    group = list(group)
    yield from (group[start : start + size] for start in range(0, len(group), size))


def _batches(items: Sequence[_Item], size: int) -> Iterator[list[_Item]]:
    """Parts of the sorted items, of one shape each."""
    for _, group in itertools.groupby(items, lambda item: item.shape):
        yield from _parts(group, size)


def _source_rows(ids: Sequence[np.ndarray], room: int, tokenizer: Tokenizer) -> Rows:
    """{"source": int32[n, room], "source_valid": bool[n, room]}."""
    source = np.full((len(ids), room), tokenizer.eos_id, np.int32)
    for row, x in zip(source, ids, strict=True):
        row[: len(x)] = x
    lengths = np.array([len(x) for x in ids])
    return {"source": source, "source_valid": np.arange(room) < lengths[:, None]}


def _target_rows(translator: Translator, batch: Sequence[_Item]) -> Rows:
    """{"prompt": int32, "fixed": bool, "seen": bool}, [n, N] each: EOS after the length."""
    at = np.arange(batch[0].shape[1])
    length = np.array([item.length for item in batch])[:, None]
    predicted = translator.config.data.eos == "predicted"
    prompt = np.full((len(batch), len(at)), translator.tokenizer.eos_id, np.int32)
    return {"prompt": prompt, "fixed": at >= length + predicted, "seen": at <= length}


def _put(layout: Layout, rows: Mapping[str, np.ndarray], size: int) -> dict[str, Array]:
    """On the devices, filled up to `size` rows with copies of the first; the same everywhere."""
    missing = size - len(next(iter(rows.values())))
    filled = {k: np.concatenate([x, np.repeat(x[:1], missing, axis=0)]) for k, x in rows.items()}
    own = list(layout.rows(size))
    return layout.put_batch({k: x[own] for k, x in filled.items()})


class _Timed:
    """A jitted function, compiled once a shape; seconds of compiling and of running apart."""

    def __init__(self, function: Callable, layout: Layout):
        # every process reads all of the result
        self._function = jax.jit(function, out_shardings=layout.replicated)
        self._compiled = {}
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
