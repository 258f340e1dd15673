"""Source shards -> files of token ids, one token file for each shard and split.

Shards are independent, so that threads of this process or Beam workers can each take some; the
token files are the same. A shard that is run again writes the same files. A shard is read and
written in chunks of `CHUNK_CHARS`, so that memory does not depend on its size.
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from ddm_jax.data.build.packing import PACKERS, Packed, read_range
from ddm_jax.data.sets.text_records import token_dtype
from ddm_jax.data.sources.registry import Source, add_digests, document_digest
from ddm_jax.data.sources.shards import Shard
from ddm_jax.data.splits import SPLITS, HeldOut, split_of
from ddm_jax.data.tokenizers.tokenizer import Tokenizer

CHUNK_CHARS = 2**20  # of text that a thread tokenises at once
_VALID_DTYPE = np.dtype(np.int32)


@dataclasses.dataclass(frozen=True)
class ShardJob:
    """A shard to tokenise.

    Attributes:
      index: its number in the source.
      split: the source's own split that it belongs to.
      shard: its documents.
    """

    index: int
    split: str
    shard: Shard


@dataclasses.dataclass(frozen=True)
class BeamSpec:
    """Where a Beam pipeline runs.

    Attributes:
      runner: name of the runner.
      options: pipeline options, spelt as Beam's own flags.
    """

    runner: str = "DirectRunner"
    options: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rules:
    """How text becomes token files.

    Attributes:
      tokenizer: text -> ids.
      held_out: fractions of `train` that go to the other splits.
      length: tokens per block, L.
      pack: a key of `PACKERS`.
    """

    tokenizer: Tokenizer
    held_out: HeldOut
    length: int
    pack: str


@dataclasses.dataclass(frozen=True)
class TokenFileInfo:
    """The figures of what one shard gives to one split.

    Attributes:
      documents: number of documents, without empty ones.
      bytes: bytes of their UTF-8 text.
      kept_bytes: bytes of the text that the tokens encode, less than `bytes` if pad cuts.
      dropped: tokens that pad cuts off.
      tokens: tokens in the file, padding included.
    """

    documents: int
    bytes: int
    kept_bytes: int
    dropped: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class SplitTokens:
    """The token files of one split, in the order of the shards: a stream cut into blocks.

    Attributes:
      stems: path of each file without its suffix.
      starts: int64[files], where each file begins in the stream.
      total: tokens in the stream.
      length: tokens per block, L.
      padded: whether the files state how many tokens of each block are real.
      dtype: of the ids in the files.
    """

    stems: tuple[Path, ...]
    starts: np.ndarray
    total: int
    length: int
    padded: bool
    dtype: np.dtype

    @property
    def blocks(self) -> int:
        """Number of whole blocks in the stream; the rest is dropped."""
        return self.total // self.length


def list_jobs(source: Source) -> list[ShardJob]:
    """Returns a job for every shard of the source, in order."""
    shards = [(split, shard) for split, parts in source.shards.items() for shard in parts]
    return [ShardJob(index, split, shard) for index, (split, shard) in enumerate(shards)]


def tokenise(
    job: ShardJob, rules: Rules, folder: Path, report: Callable[[int], object] = lambda _: None
) -> None:
    """Reads one shard and writes its token files in `folder`, its summary last.

    Args:
      job: the shard.
      rules: how its text becomes tokens.
      folder: where to write.
      report: called with the bytes of text of each chunk, when it is written.

    Raises:
      UserError: the text is bad (see `readers`, `hubs`).
    """
    digest = 0
    files: dict[str, _TokenFile] = {}
    with contextlib.ExitStack() as stack:
        for texts in _chunks(filter(None, job.shard.read())):
            digest = add_digests(digest, *(document_digest(job.split, text) for text in texts))
            size = 0
            for split, members in _by_split(texts, job.split, rules.held_out).items():
                if split not in files:
                    stem = _stem(folder, job.index, split)
                    files[split] = stack.enter_context(_TokenFile(stem, rules))
                size += files[split].write(members)
            report(size)
    figures = {split: dataclasses.asdict(file.info()) for split, file in files.items()}
    summary = {"digest": f"{digest:064x}", "token_files": figures}
    _summary_path(folder, job.index).write_text(json.dumps(summary))


def gather(
    folder: Path, shards: int, rules: Rules
) -> tuple[str, dict[str, list[TokenFileInfo]], dict[str, SplitTokens]]:
    """Reads the summaries of all shards.

    Args:
      folder: the folder that `tokenise` wrote to.
      shards: number of shards.
      rules: the rules of `tokenise`.

    Returns:
      The source's fingerprint; the figures of each split's token files; each split's stream.
    """
    digest = 0
    infos: dict[str, list[TokenFileInfo]] = {split: [] for split in SPLITS}
    stems: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for index in range(shards):
        summary = json.loads(_summary_path(folder, index).read_text())
        digest = add_digests(digest, int(summary["digest"], 16))
        for split, figures in summary["token_files"].items():
            infos[split].append(TokenFileInfo(**figures))
            stems[split].append(_stem(folder, index, split))
    streams = {}
    for split in SPLITS:
        ends = np.cumsum([0, *(info.tokens for info in infos[split])], dtype=np.int64)
        streams[split] = SplitTokens(
            stems=tuple(stems[split]),
            starts=ends[:-1],
            total=int(ends[-1]),
            length=rules.length,
            padded=rules.pack == "pad",
            dtype=token_dtype(rules.tokenizer.vocab_size),
        )
    return f"{digest:064x}", infos, streams


def read_blocks(stream: SplitTokens, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads blocks [start, stop) of a split.

    Returns:
      Token ids [stop - start, L] in the dtype of the files, and int32[stop - start], the number of
      real tokens in each block.
    """
    length = stream.length
    open_tokens = _opener(stream, "tokens", stream.dtype)
    tokens = read_range(open_tokens, stream.starts, start * length, stop * length)
    if stream.padded:
        open_valid = _opener(stream, "valid", _VALID_DTYPE)
        valid = read_range(open_valid, stream.starts // length, start, stop)
    else:
        valid = np.full(stop - start, length, np.int32)
    return tokens.reshape(stop - start, length), valid


def unigram_counts(stream: SplitTokens, vocab_size: int) -> np.ndarray:
    """Returns int64[V]: how often each id occurs as a real token in the whole blocks of a split."""
    counts = np.zeros(vocab_size, np.int64)
    for stem in stream.stems:
        counts += np.fromfile(_array_path(stem, "counts"), np.int64)
    kept = stream.blocks * stream.length
    if kept == stream.total:
        return counts
    tail = read_range(_opener(stream, "tokens", stream.dtype), stream.starts, kept, stream.total)
    return counts - np.bincount(tail, minlength=vocab_size)


class _TokenFile:
    """The file of what one shard gives to one split, written chunk by chunk.

    Ids are written as they are, without a header; so are, for `pad`, the real tokens of each block.
    """

    def __init__(self, stem: Path, rules: Rules) -> None:
        self._stem, self._rules = stem, rules
        self._info = TokenFileInfo(documents=0, bytes=0, kept_bytes=0, dropped=0, tokens=0)
        self._counts = np.zeros(rules.tokenizer.vocab_size, np.int64)

    def __enter__(self) -> "_TokenFile":
        arrays = ("tokens", "valid") if self._rules.pack == "pad" else ("tokens",)
        self._files = {array: _array_path(self._stem, array).open("wb") for array in arrays}
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()
        self._counts.tofile(_array_path(self._stem, "counts"))

    def write(self, texts: list[str]) -> int:
        """Encodes documents and appends their tokens; returns the bytes of their text."""
        tokenizer, length = self._rules.tokenizer, self._rules.length
        documents = tokenizer.encode_batch(texts)
        packed = PACKERS[self._rules.pack](documents, tokenizer.eos_id, length)
        sizes = [len(text.encode()) for text in texts]
        kept, dropped = sizes, 0
        if packed.valid is not None:
            kept = [
                size if len(ids) <= length else len(tokenizer.decode(ids[:length]).encode())
                for ids, size in zip(documents, sizes, strict=True)
            ]
            dropped = sum(len(ids) + 1 for ids in documents) - int(packed.valid.sum())
            packed.valid.astype(_VALID_DTYPE).tofile(self._files["valid"])
        packed.stream.astype(token_dtype(tokenizer.vocab_size)).tofile(self._files["tokens"])
        self._counts += np.bincount(_real_tokens(packed, length), minlength=tokenizer.vocab_size)
        self._info = TokenFileInfo(
            documents=self._info.documents + len(texts),
            bytes=self._info.bytes + sum(sizes),
            kept_bytes=self._info.kept_bytes + sum(kept),
            dropped=self._info.dropped + dropped,
            tokens=self._info.tokens + len(packed.stream),
        )
        return sum(sizes)

    def info(self) -> TokenFileInfo:
        """Returns the figures of what has been written."""
        return self._info


def _chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    """Yields the documents in lists of at least `CHUNK_CHARS` characters, the last one shorter."""
    chunk: list[str] = []
    size = 0
    for text in documents:
        chunk.append(text)
        size += len(text)
        if size >= CHUNK_CHARS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _by_split(texts: list[str], own: str, held_out: HeldOut) -> dict[str, list[str]]:
    """Sorts documents of the source's own split by the split that they belong to."""
    if own != "train":
        return {own: texts}
    found: dict[str, list[str]] = {}
    for text in texts:
        found.setdefault(split_of(text, held_out), []).append(text)
    return found


def _real_tokens(packed: Packed, length: int) -> np.ndarray:
    if packed.valid is None:
        return packed.stream
    rows = packed.stream.reshape(-1, length)
    return rows[np.arange(length) < packed.valid[:, None]]


def _opener(stream: SplitTokens, array: str, dtype: np.dtype) -> Callable[[int], np.ndarray]:
    return lambda index: np.memmap(_array_path(stream.stems[index], array), dtype, mode="r")


def _stem(folder: Path, index: int, split: str) -> Path:
    return folder / f"{index:07d}-{split}"


def _array_path(stem: Path, array: str) -> Path:
    return stem.with_name(f"{stem.name}-{array}.bin")


def _summary_path(folder: Path, index: int) -> Path:
    return folder / f"{index:07d}.json"
