"""Translation: lengths first, then a sample at each of them, then the best candidate.

The length head proposes the most likely lengths (Ghazvininejad et al. 2019, arXiv:1904.09324, as in
RDM, Zheng et al. 2023, arXiv:2302.05737). Every candidate is drawn at its own length, and one is
chosen by the mean log-probability that the network gave it, or by minimum Bayes risk. Sources are
grouped into the shapes of training, so that few programs are compiled.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jax import Array

from ddm_jax.config import Config
from ddm_jax.costs.memory import lower_batch, out_of_memory
from ddm_jax.data.pair_encoding import bucket_shapes, decode, encode
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.experiment import make_sampler
from ddm_jax.generation.candidates import mbr
from ddm_jax.generation.request import SamplingRequest
from ddm_jax.generation.translator import Translator, make_translator
from ddm_jax.models.network import Params
from ddm_jax.parallel.layouts import Layout, local_dp
from ddm_jax.runs.progress import ProgressBar
from ddm_jax.runs.record import read_record
from ddm_jax.runs.run import Run, open_run
from ddm_jax.samplers.signature import SampleSpec

BATCH_SIZE = 64  # targets drawn at once
Rows = dict[str, np.ndarray]
T = TypeVar("T")


@dataclass(frozen=True)
class Translations:
    """The translations of some sources, in their order.

    Attributes:
      texts: the chosen target of each source.
      candidates: all targets that were drawn for it.
      nfe: evaluations of the decoder, over all candidates of a source.
      seconds: wall-clock time of the device programs, compilation excluded.
      compile_s: seconds that compilation took.
    """

    texts: list[str]
    candidates: list[list[str]]
    nfe: list[int]
    seconds: float
    compile_s: float


@dataclass(frozen=True)
class _Item:
    """A target to be drawn.

    Attributes:
      source: index of its source.
      length: tokens without the EOS.
      shape: (S, N), the bucket that holds both.
    """

    source: int
    length: int
    shape: tuple[int, int]


@dataclass(frozen=True)
class _Drawn:
    """A target that was drawn, with its score in nats (samplers.signature.Stats)."""

    text: str
    nfe: int
    score: float


def read_translation_config(workdir: Path, request: SamplingRequest) -> Config:
    """The settled config of a run on pairs as the request changes it; reads no weights.

    Raises:
      UserError: there is no run, it has no sources, or the request does not fit it.
    """
    config, _ = read_record(workdir)
    return _with_request(config, request, str(workdir))


def _with_request(config: Config, request: SamplingRequest, workdir: str) -> Config:
    if config.model.kind == "lm":
        raise UserError(
            f"The run in {workdir} has no sources (config.model.kind='lm'): use "
            "`python -m ddm_jax.sample`, or give a run on pairs."
        )
    config = request.apply_to(config)
    sizes = dataclasses.replace(config.eval, batch_size=request.batch_size or BATCH_SIZE)
    return dataclasses.replace(config, eval=sizes)


def open_translator(
    workdir: Path, request: SamplingRequest, weights: str = "ema"
) -> tuple[Run, Translator]:
    """Opens a run on pairs, and what translates with its weights.

    Args:
      workdir: the folder of the run.
      request: how to draw; its seed is an argument of `translate`.
      weights: see `runs.run.open_run`.

    Returns:
      The run, with the config that the request asks for, and the translator.

    Raises:
      UserError: as `read_translation_config`, or there is no checkpoint.
    """
    config = read_translation_config(workdir, request)
    layout = local_dp(config.eval.batch_size)
    run = dataclasses.replace(open_run(workdir, weights, layout), config=config)
    return run, _translator_of(run, layout)


def translate_sources(
    run: Run, sources: Sequence[str], request: SamplingRequest | None = None
) -> Translations:
    """Translates with a run that is open, as `python -m ddm_jax.translate` does.

    Args:
      run: of `runs.run.open_run`, trained on pairs.
      sources: texts of one line.
      request: how to draw; None as the run's config says, 64 targets at once, seed 0.

    Raises:
      UserError: the run has no sources, the request does not fit it, or a source is too long.
    """
    request = request or SamplingRequest()
    config = _with_request(run.config, request, str(run.workdir))
    layout = local_dp(config.eval.batch_size)
    params = jax.device_put(run.params, layout.replicated)
    translator = _translator_of(dataclasses.replace(run, config=config), layout)
    return translate(translator, params, sources, request.seed)


def _translator_of(run: Run, layout: Layout) -> Translator:
    sampler = make_sampler(run.config)
    return make_translator(run.network, run.process, sampler, run.config, run.tokenizer, layout)


def settings(run: Run, seed: int) -> dict[str, Any]:
    """All that decides the translations of `open_translator`'s run, for a report."""
    sampler = dataclasses.asdict(run.config.sampler)
    return {
        "checkpoint": run.step,
        "weights": run.weights,
        "sampler": {k: x for k, x in sampler.items() if x is not None and k != "num"},
        "batch_size": run.config.eval.batch_size,
        "seed": seed,
    }


def translate(
    translator: Translator,
    params: Params,
    sources: Sequence[str],
    seed: int = 0,
    name: str = "source",
    nested: bool = False,
) -> Translations:
    """Translates; an empty source has an empty target and costs nothing.

    Args:
      translator: of a run.
      params: its weights.
      sources: texts of one line.
      seed: the same seed, sources and eval.batch_size draw the same targets.
      name: what to call the sources in an error.
      nested: whether another progress bar is shown at the same time (`ProgressBar`).

    Raises:
      UserError: a source is longer than data.source_length, or a device has run out of memory.
    """
    timed = (translator.lengths, translator.draw)
    before = [(t.seconds, t.compile_s) for t in timed]
    ids = _encoded(translator, sources, name)
    number, size = translator.config.sampler.candidates, translator.config.eval.batch_size
    found: list[list[_Drawn]] = [[] for _ in sources]
    with out_of_memory(f"A batch of {size} targets", lambda: lower_batch(size)):
        items = [x for x in _items(translator, params, ids) for _ in range(number)]
        items.sort(key=lambda item: item.shape)
        drawn_items = _draw(translator, params, ids, items, seed)
        with ProgressBar(len(items), unit="target", nested=nested) as progress:
            for done, (item, drawn) in enumerate(drawn_items, start=1):
                found[item.source].append(drawn)
                progress.update(done)
    return Translations(
        texts=[_chosen(translator.config, of) for of in found],
        candidates=[[drawn.text for drawn in of] or [""] for of in found],
        nfe=[sum(drawn.nfe for drawn in of) for of in found],
        seconds=sum(t.seconds - b[0] for t, b in zip(timed, before, strict=True)),
        compile_s=sum(t.compile_s - b[1] for t, b in zip(timed, before, strict=True)),
    )


def _draw(
    translator: Translator,
    params: Params,
    ids: Sequence[np.ndarray],
    items: Sequence[_Item],
    seed: int,
) -> Iterator[tuple[_Item, _Drawn]]:
    """Draws the sorted items, batch by batch; batch i has the key fold_in(key(seed), i)."""
    config, tokenizer, layout = translator.config, translator.tokenizer, translator.layout
    size = config.eval.batch_size
    # numpy's, not jax's: every process gives its devices the same
    values: dict[str, Any] = {
        "steps": np.int32(config.sampler.steps),
        "temperature": np.float32(config.sampler.temperature),
        "stop": np.int32(tokenizer.eos_id),
    }
    spec = SampleSpec(**values)
    for number, batch in enumerate(_batches(items, size)):
        key_data = np.asarray(jax.random.key_data(jax.random.fold_in(jax.random.key(seed), number)))
        rows = _source_rows([ids[x.source] for x in batch], batch[0].shape[0], tokenizer)
        rows |= _target_rows(translator, batch)
        drawn = translator.draw(params, key_data, spec, **_put(layout, rows, size))
        for item, tokens, nfe, score in zip(batch, *drawn, strict=False):
            yield item, _Drawn(decode(tokenizer, tokens), int(nfe), float(score))


def _chosen(config: Config, found: Sequence[_Drawn]) -> str:
    if not found:
        return ""
    if config.sampler.selection == "mbr":
        return found[mbr([drawn.text for drawn in found])].text
    return max(found, key=lambda drawn: drawn.score).text


def _encoded(translator: Translator, sources: Sequence[str], name: str) -> list[np.ndarray]:
    """Ids of each source with its EOS, which is all of an empty one."""
    eos, longest = translator.tokenizer.eos_id, translator.config.data.source_length
    texts = [text.strip() for text in sources]
    none = np.zeros(0, np.int32)
    words = [encode(translator.tokenizer, text) if text else none for text in texts]
    ids = [np.append(x, np.int32(eos)) for x in words]
    for line, x in enumerate(ids, start=1):
        if len(x) > longest:
            raise UserError(
                f"Line {line} of {name} has {len(x)} tokens with its EOS, more than the run's "
                f"config.data.source_length={longest}: shorten or split it."
            )
    return ids


def _items(translator: Translator, params: Params, ids: Sequence[np.ndarray]) -> Iterator[_Item]:
    """The sources that are not empty, each at its most likely lengths."""
    data, size = translator.config.data, translator.config.eval.batch_size
    shapes = bucket_shapes(data.length, data.source_length, data.buckets)

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


def _parts(group: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of `size` at most."""
    items = list(group)
    yield from (items[start : start + size] for start in range(0, len(items), size))


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
    own = list(layout.local_rows(size))
    return layout.put_batch({k: x[own] for k, x in filled.items()})
