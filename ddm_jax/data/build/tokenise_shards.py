"""Source shards -> files of token ids, one piece for each shard and split.

Shards are independent, so that threads here or Beam workers elsewhere may each take some; the
pieces are the same. Run again, a shard writes the same files again.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from ddm_jax.data.build.packing import PACKS, Packed, stretch
from ddm_jax.data.sources.registry import Source, add_digests, document_digest
from ddm_jax.data.sources.text_files import Shard
from ddm_jax.data.splits import SPLITS, HeldOut, split_of
from ddm_jax.data.tokenizers.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Job:
    """A shard to tokenise: its place in the source, and the source's own split that it is of."""

    index: int
    split: str
    shard: Shard


@dataclasses.dataclass(frozen=True)
class Rules:
    """How text becomes pieces."""

    tokenizer: Tokenizer
    held_out: HeldOut
    length: int
    pack: str


@dataclasses.dataclass(frozen=True)
class Piece:
    """What one shard gives to one split.

    Attributes:
        documents: how many, empty ones left out.
        bytes: of their UTF-8 text.
        kept_bytes: of the text that the tokens stand for, less than `bytes` where pad cuts.
        dropped: tokens that pad cuts off.
        tokens: length of the stream in the piece's file, padding included.
    """

    documents: int
    bytes: int
    kept_bytes: int
    dropped: int
    tokens: int


@dataclasses.dataclass(frozen=True)
class SplitTokens:
    """The pieces of one split, in the order of the shards: a stream cut into blocks.

    Attributes:
        stems: path of each piece without its suffix.
        starts: int64[pieces], where each begins in the stream.
        total: tokens in the stream.
        length: tokens a block.
        padded: whether the pieces say how many tokens of each block are real.
    """

    stems: tuple[Path, ...]
    starts: np.ndarray
    total: int
    length: int
    padded: bool

    @property
    def blocks(self) -> int:
        """Whole blocks in the stream; what is left over is dropped."""
        return self.total // self.length


def token_dtype(vocab_size: int) -> np.dtype:
    """The smaller of uint16 and int32 that holds every id."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.int32)


def jobs(source: Source) -> list[Job]:
    """Every shard of the source, in order."""
    shards = [(split, shard) for split, parts in source.shards.items() for shard in parts]
    return [Job(index, split, shard) for index, (split, shard) in enumerate(shards)]


def tokenise(job: Job, rules: Rules, folder: Path) -> int:
    """Reads one shard and writes its pieces in `folder`, its summary last.

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
    pieces = {
        split: _write_piece(_stem(folder, job.index, split), documents, rules)
        for split, documents in texts.items()
        if documents
    }
    plain = {split: dataclasses.asdict(piece) for split, piece in pieces.items()}
    summary = {"digest": f"{digest:064x}", "pieces": plain}
    _summary(folder, job.index).write_text(json.dumps(summary))
    return sum(piece.bytes for piece in pieces.values())


def gather(folder: Path, count: int, rules: Rules) -> tuple[str, Mapping[str, list[Piece]], dict]:
    """Reads the summaries of `count` shards.

    Returns:
        The source's fingerprint; the pieces of each split; and its `SplitTokens`.
    """
    digest = 0
    pieces: dict[str, list[Piece]] = {split: [] for split in SPLITS}
    stems: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for index in range(count):
        summary = json.loads(_summary(folder, index).read_text())
        digest = add_digests(digest, int(summary["digest"], 16))
        for split, piece in summary["pieces"].items():
            pieces[split].append(Piece(**piece))
            stems[split].append(_stem(folder, index, split))
    streams = {}
    for split in SPLITS:
        ends = np.cumsum([0, *(piece.tokens for piece in pieces[split])], dtype=np.int64)
        streams[split] = SplitTokens(
            tuple(stems[split]), ends[:-1], int(ends[-1]), rules.length, rules.pack == "pad"
        )
    return f"{digest:064x}", pieces, streams


def read_blocks(stream: SplitTokens, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks [start, stop) of a split.

    Returns:
        Token ids [stop - start, L] in the pieces' dtype, and int32[stop - start] real tokens.
    """
    length = stream.length
    tokens = stretch(_opener(stream, "tokens"), stream.starts, start * length, stop * length)
    if stream.padded:
        valid = stretch(_opener(stream, "valid"), stream.starts // length, start, stop)
    else:
        valid = np.full(stop - start, length, np.int32)
    return tokens.reshape(stop - start, length), valid


def unigram_counts(stream: SplitTokens, vocab_size: int) -> np.ndarray:
    """int64[V]: how often each id occurs as a real token in the whole blocks of a split."""
    pieces = map(_opener(stream, "counts"), range(len(stream.stems)))
    counts = sum(pieces, start=np.zeros(vocab_size, np.int64))
    kept = stream.blocks * stream.length
    if kept == stream.total:
        return counts
    tail = stretch(_opener(stream, "tokens"), stream.starts, kept, stream.total)
    return counts - np.bincount(tail, minlength=vocab_size)


def _write_piece(stem: Path, texts: list[str], rules: Rules) -> Piece:
    tokenizer, length = rules.tokenizer, rules.length
    documents = tokenizer.encode_batch(texts)
    packed = PACKS[rules.pack](documents, tokenizer.eos_id, length)
    sizes = [len(text.encode()) for text in texts]
    kept, dropped = sizes, 0
    if packed.valid is not None:
        kept = [
            size if len(ids) <= length else len(tokenizer.decode(ids[:length]).encode())
            for ids, size in zip(documents, sizes, strict=True)
        ]
        dropped = sum(len(ids) + 1 for ids in documents) - int(packed.valid.sum())
        np.save(_file(stem, "valid"), packed.valid)
    np.save(_file(stem, "tokens"), packed.stream.astype(token_dtype(tokenizer.vocab_size)))
    counts = np.bincount(_real(packed, length), minlength=tokenizer.vocab_size)
    np.save(_file(stem, "counts"), counts)
    return Piece(len(texts), sum(sizes), sum(kept), dropped, len(packed.stream))


def _real(packed: Packed, length: int) -> np.ndarray:
    if packed.valid is None:
        return packed.stream
    rows = packed.stream.reshape(-1, length)
    return rows[np.arange(length) < packed.valid[:, None]]


def _opener(stream: SplitTokens, part: str) -> Callable[[int], np.ndarray]:
    return lambda index: np.load(_file(stream.stems[index], part), mmap_mode="r")


def _stem(folder: Path, index: int, split: str) -> Path:
    return folder / f"{index:07d}-{split}"


def _file(stem: Path, part: str) -> Path:
    return stem.with_name(f"{stem.name}-{part}.npy")


def _summary(folder: Path, index: int) -> Path:
    return folder / f"{index:07d}.json"
