"""Parallel text -> prepared set of pairs.

The text is never held in memory as a whole. It is read several times: for its fingerprint and the
number of pairs, to train a tokenizer, and once for each split.
"""

import functools
import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddm_jax.data import pair_encoding
from ddm_jax.data.build.atomic_folder import (
    check_free,
    check_reusable,
    publish,
    temporary_sibling,
)
from ddm_jax.data.build.plan import TRAINS_TOKENIZER, announce, check_asked
from ddm_jax.data.sets.folder import COUNTS, is_prepared
from ddm_jax.data.sets.kinds import open_folder
from ddm_jax.data.sets.pairs import PairSpec, PairSplitInfo, PreparedPairs, lengths_file
from ddm_jax.data.sets.text_records import token_dtype
from ddm_jax.data.sources import pair_files
from ddm_jax.data.sources.pair_files import Pair
from ddm_jax.data.splits import SPLITS, HeldOut, hash_position, split_of, without_own_splits
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.progress import ProgressBar, say

CHUNK = 1024  # pairs that a thread encodes at once


@dataclass(frozen=True)
class EncodedPair:
    """A pair with the ids of both sides, int32[n] without EOS."""

    source: np.ndarray
    target: np.ndarray
    source_text: str
    target_text: str


def prepare_pairs(
    spec: PairSpec, out: Path, *, workers: int | None = None, progress: bool = True
) -> PreparedPairs:
    """Prepares a spec in the folder `out`, or opens the set that is already there.

    Args:
      spec: what to prepare.
      out: folder to make; it appears when the set is finished, and not before.
      workers: threads that tokenise; all cores by default. The result does not depend on it.
      progress: whether to say on stderr what is done and how far it is.

    Raises:
      UserError: bad spec or text, `out` holds something else, or a split that the spec asks for
        would have no pair that fits.
    """
    _check(spec)
    out = out.expanduser()
    spec = spec.absolute()
    if is_prepared(out):
        finished = open_folder(out)
        check_reusable(finished, spec)
        assert isinstance(finished, PreparedPairs)  # the specs are equal
        return finished
    check_free(out)
    files = {f: pair_files.find_files(named, f"data.{f}") for f, named in spec.named.items()}
    if progress:
        announce(spec, files, out)
    stamp = spec.stamp()
    held_out = without_own_splits(HeldOut(spec.validation_fraction, spec.test_fraction), spec.named)
    fingerprint, counted, empty = _count(spec, held_out, progress)
    if not counted["train"]:
        raise _no_pair(spec)
    with temporary_sibling(out) as scratch:
        texts = functools.partial(_train_texts, spec, held_out, counted["train"], progress)
        tokenizer = tokenizers.make(spec.tokenizer, texts)
        tallies = {split: _Tally(spec, tokenizer.vocab_size) for split in SPLITS}
        encode = functools.partial(_encode_chunks, tokenizer=tokenizer, threads=workers)
        pairs = {
            split: tallies[split].count(encode(_pairs_of_split(spec, held_out, split)))
            for split in SPLITS
            if counted[split]
        }
        records = {
            split: _records(split, encoded, counted[split], tokenizer, progress)
            for split, encoded in pairs.items()
        }
        built = _write(records, tokenizer, scratch)
        splits = {split: tallies[split].info(empty[split]) for split in SPLITS}
        _check_fitting(spec, splits)
        np.save(built / COUNTS, np.stack([tallies[split].counts for split in SPLITS]))
        for split in SPLITS:
            np.save(built / lengths_file(split), np.concatenate(tallies[split].lengths))
        tokenizer.save(built)
        prepared = PreparedPairs(out, spec, fingerprint, stamp, tokenizer, splits)
        publish(built, out, prepared.description())
    return prepared


def _write(
    records: Mapping[str, Iterator[dict[str, object]]], tokenizer: Tokenizer, folder: Path
) -> Path:
    """Writes the pairs of each split, in order: ids of both sides, without EOS, and the texts."""
    import tensorflow_datasets as tfds  # slow to import

    from ddm_jax.data.build import tfds_builder

    features = {}
    for side in ("source", "target"):
        features[side] = tfds.features.Tensor(
            shape=(None,),
            dtype=token_dtype(tokenizer.vocab_size),
            encoding=tfds.features.Encoding.BYTES,
        )
        features[f"{side}_text"] = tfds.features.Text()
    return tfds_builder.write(
        "parallel_text",
        "Pairs of texts and their tokens, prepared by ddm_jax.",
        tfds.features.FeaturesDict(features),
        records,
        folder,
        records_per_file=tfds_builder.FILE_RECORDS,
    )


def _records(
    split: str, pairs: Iterator[EncodedPair], total: int, tokenizer: Tokenizer, progress: bool
) -> Iterator[dict[str, object]]:
    dtype = token_dtype(tokenizer.vocab_size)
    with ProgressBar(total, unit="pair", label=f"tokenise {split}", shown=progress) as bar:
        for pair in pairs:
            yield {
                "source": pair.source.astype(dtype),
                "target": pair.target.astype(dtype),
                "source_text": pair.source_text,
                "target_text": pair.target_text,
            }
            bar.add(1)


class _Tally:
    """The figures of a split, counted while its pairs are written."""

    def __init__(self, spec: PairSpec, vocab_size: int) -> None:
        self.counts = np.zeros(vocab_size, np.int64)  # of ids in the targets that fit
        self.lengths = [np.empty((0, 2), np.int32)]
        self._limits = np.array([spec.source_length, spec.length])
        self._words = np.zeros(2, np.int64)
        self._bytes = 0

    def count(self, chunks: Iterable[list[EncodedPair]]) -> Iterator[EncodedPair]:
        """Counts the pairs of all chunks and yields each."""
        for chunk in chunks:
            lengths = np.array([[len(p.source) + 1, len(p.target) + 1] for p in chunk])
            fit = np.all(lengths <= self._limits, axis=1)
            fitting = [pair for pair, fits in zip(chunk, fit.tolist(), strict=True) if fits]
            for pair in fitting:
                self._bytes += len(pair.target_text.encode())
            targets = np.concatenate([np.empty(0, np.int32), *(p.target for p in fitting)])
            self.counts += np.bincount(targets, minlength=len(self.counts))
            self.lengths.append(lengths.astype(np.int32))
            self._words += (lengths[fit] - 1).sum(axis=0)
            yield from chunk

    def info(self, empty: int) -> PairSplitInfo:
        """Returns the figures, after all pairs have been counted."""
        lengths = np.concatenate(self.lengths)
        source_tokens, tokens = self._words.tolist()
        return PairSplitInfo(
            pairs=len(lengths),
            empty=empty,
            long=int((lengths > self._limits).any(axis=1).sum()),
            source_tokens=source_tokens,
            tokens=tokens,
            bytes=self._bytes,
        )


def _check(spec: PairSpec) -> None:
    for field in ("length", "source_length"):
        if getattr(spec, field) < 2:
            raise UserError(
                f"data.{field}={getattr(spec, field)} must be at least 2: a word and its EOS."
            )
    if tokenizers.split_spec(spec.tokenizer)[0] == "text8":
        raise UserError(
            "data.tokenizer=text8 cannot end a text inside a row (its EOS is the space): use "
            "another tokenizer for pairs."
        )


def _no_pair(spec: PairSpec) -> UserError:
    return UserError(
        f"data.source={spec.source} gives no pair to train on that fits data.length="
        f"{spec.length} and data.source_length={spec.source_length}: add text, raise these, or "
        "lower the held-out fractions."
    )


def _check_fitting(spec: PairSpec, splits: Mapping[str, PairSplitInfo]) -> None:
    """Refuses a set without a fitting pair in a split that the spec asks for."""
    limits = f"data.length={spec.length} and data.source_length={spec.source_length}"
    for split, info in splits.items():
        if info.fitting:
            continue
        if split == "train":
            raise _no_pair(spec)
        check_asked(spec, split, f"no pair that fits {limits} ({info.long} do not)", "raise these")


def _count(
    spec: PairSpec, held_out: HeldOut, progress: bool
) -> tuple[str, Counter[str], Counter[str]]:
    """Returns the fingerprint of all pairs, and their number, and that of empty ones, by split.

    A pair with an empty side counts for the split whose file has it, or for train in the source.
    """
    digest = hashlib.sha256()
    counted: Counter[str] = Counter()
    empty: Counter[str] = Counter()
    with ProgressBar(0, unit="pair", label="read", shown=progress) as bar:
        for field, named in spec.named.items():
            for source, target in pair_files.read_and_hash(named, digest):
                own = "train" if field == "source" else field
                if not (source and target):
                    empty[own] += 1
                else:
                    counted[split_of(source, held_out) if own == "train" else own] += 1
                bar.add(1)
    return digest.hexdigest(), counted, empty


def _pairs_of_split(spec: PairSpec, held_out: HeldOut, split: str) -> Iterator[Pair]:
    """Yields the pairs of a split that have words on both sides, in the order on disk."""
    own = spec.named.get("source" if split == "train" else split, "")
    pairs = filter(all, pair_files.read(own or spec.source))
    if split != "train" and own:
        return pairs
    members = (pair for pair in pairs if split_of(pair[0], held_out) == split)
    # In the order of a hash, the first n pairs are a fair sample.
    return members if own else iter(sorted(members, key=lambda pair: hash_position(pair[0])))


def _train_texts(spec: PairSpec, held_out: HeldOut, total: int, progress: bool) -> Iterator[str]:
    """Yields the texts that the tokenizer may be trained on: both sides of the train split."""
    with ProgressBar(total, unit="pair", label="read for the tokenizer", shown=progress) as bar:
        for pair in _pairs_of_split(spec, held_out, "train"):
            yield from map(pair_encoding.with_leading_space, pair)
            bar.add(1)
    if progress:
        say(TRAINS_TOKENIZER)


def _encode_chunks(
    pairs: Iterable[Pair], tokenizer: Tokenizer, threads: int | None
) -> Iterator[list[EncodedPair]]:
    """Yields encoded pairs in chunks, in order."""
    remaining = iter(pairs)
    chunks = iter(lambda: list(itertools.islice(remaining, CHUNK)), [])
    threads = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        while group := list(itertools.islice(chunks, threads)):
            yield from pool.map(functools.partial(_encode_chunk, tokenizer=tokenizer), group)


def _encode_chunk(chunk: list[Pair], tokenizer: Tokenizer) -> list[EncodedPair]:
    return [
        EncodedPair(
            source=pair_encoding.encode(tokenizer, source),
            target=pair_encoding.encode(tokenizer, target),
            source_text=source,
            target_text=target,
        )
        for source, target in chunk
    ]
