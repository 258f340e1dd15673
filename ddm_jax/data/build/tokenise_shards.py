"""Source shards -> files of token ids, one token file for each shard and split.

Shards are independent, so that threads of this process or Beam workers can each take some; the
token files are the same. A shard that is run again writes the same files.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddm_jax.data.build.packing import PACKERS, Packed, read_range
from ddm_jax.data.sets.text_records import token_dtype
from ddm_jax.data.sources.registry import Source, add_digests, document_digest
from ddm_jax.data.sources.text_files import Shard
from ddm_jax.data.splits import SPLITS, HeldOut, split_of
from ddm_jax.data.tokenizers.tokenizer import Tokenizer


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
    """

    stems: tuple[Path, ...]
    starts: np.ndarray
    total: int
    length: int
    padded: bool

    @property
    def blocks(self) -> int:
        """Number of whole blocks in the stream; the rest is dropped."""
        return self.total // self.length


def list_jobs(source: Source) -> list[ShardJob]:
    """Returns a job for every shard of the source, in order."""
    shards = [(split, shard) for split, parts in source.shards.items() for shard in parts]
    return [ShardJob(index, split, shard) for index, (split, shard) in enumerate(shards)]


def tokenise(job: ShardJob, rules: Rules, folder: Path) -> int:
    """Reads one shard and writes its token files in `folder`, its summary last.

    Returns:
      Bytes of text in the shard.

    Raises:
      UserError: the text is bad (see `text_files`, `hubs`).
    """
    texts: dict[str, list[str]] = {split: [] for split in SPLITS}
    digest = 0
    for text in filter(None, job.shard.read()):
        digest = add_digests(digest, document_digest(job.split, text))
        own = job.split != "train"
        texts[job.split if own else split_of(text, rules.held_out)].append(text)
    infos = {
        split: _write_token_file(_stem(folder, job.index, split), documents, rules)
        for split, documents in texts.items()
        if documents
    }
    figures = {split: dataclasses.asdict(info) for split, info in infos.items()}
    summary = {"digest": f"{digest:064x}", "token_files": figures}
    _summary_path(folder, job.index).write_text(json.dumps(summary))
    return sum(info.bytes for info in infos.values())


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
        )
    return f"{digest:064x}", infos, streams


def read_blocks(stream: SplitTokens, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Reads blocks [start, stop) of a split.

    Returns:
      Token ids [stop - start, L] in the dtype of the files, and int32[stop - start], the number of
      real tokens in each block.
    """
    length = stream.length
    tokens = read_range(_opener(stream, "tokens"), stream.starts, start * length, stop * length)
    if stream.padded:
        valid = read_range(_opener(stream, "valid"), stream.starts // length, start, stop)
    else:
        valid = np.full(stop - start, length, np.int32)
    return tokens.reshape(stop - start, length), valid


def unigram_counts(stream: SplitTokens, vocab_size: int) -> np.ndarray:
    """Returns int64[V]: how often each id occurs as a real token in the whole blocks of a split."""
    open_counts = _opener(stream, "counts")
    counts = np.zeros(vocab_size, np.int64)
    for index in range(len(stream.stems)):
        counts += open_counts(index)
    kept = stream.blocks * stream.length
    if kept == stream.total:
        return counts
    tail = read_range(_opener(stream, "tokens"), stream.starts, kept, stream.total)
    return counts - np.bincount(tail, minlength=vocab_size)


def _write_token_file(stem: Path, texts: list[str], rules: Rules) -> TokenFileInfo:
    tokenizer, length = rules.tokenizer, rules.length
    documents = tokenizer.encode_batch(texts)
    packed = PACKERS[rules.pack](documents, tokenizer.eos_id, length)
    sizes = [len(text.encode()) for text in texts]
    kept, dropped = sizes, 0
    if packed.valid is not None:
        kept = [
            size if len(ids) <= length else len(tokenizer.decode(ids[:length]).encode())
            for ids, size in zip(documents, sizes, strict=True)
        ]
        dropped = sum(len(ids) + 1 for ids in documents) - int(packed.valid.sum())
        np.save(_array_path(stem, "valid"), packed.valid)
    np.save(_array_path(stem, "tokens"), packed.stream.astype(token_dtype(tokenizer.vocab_size)))
    counts = np.bincount(_real_tokens(packed, length), minlength=tokenizer.vocab_size)
    np.save(_array_path(stem, "counts"), counts)
    return TokenFileInfo(
        documents=len(texts),
        bytes=sum(sizes),
        kept_bytes=sum(kept),
        dropped=dropped,
        tokens=len(packed.stream),
    )


def _real_tokens(packed: Packed, length: int) -> np.ndarray:
    if packed.valid is None:
        return packed.stream
    rows = packed.stream.reshape(-1, length)
    return rows[np.arange(length) < packed.valid[:, None]]


def _opener(stream: SplitTokens, array: str) -> Callable[[int], np.ndarray]:
    return lambda index: np.load(_array_path(stream.stems[index], array), mmap_mode="r")


def _stem(folder: Path, index: int, split: str) -> Path:
    return folder / f"{index:07d}-{split}"


def _array_path(stem: Path, array: str) -> Path:
    return stem.with_name(f"{stem.name}-{array}.npy")


def _summary_path(folder: Path, index: int) -> Path:
    return folder / f"{index:07d}.json"
