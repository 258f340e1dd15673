"""Parallel text -> prepared pairs.

The text is never held as a whole: it is read to know it again, to count it, to train a tokenizer,
and for each split.
"""

import functools
import itertools
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from ddm_jax.data import pair_encoding as pairs
from ddm_jax.data.build import tfds_builder as builder
from ddm_jax.data.build.atomic_folder import check_free, publish, temporary_sibling
from ddm_jax.data.build.reuse import finished
from ddm_jax.data.build.tokenise_shards import token_dtype
from ddm_jax.data.sets.pairs import PairInfo, PairSpec, PreparedPairs, lengths_file
from ddm_jax.data.sets.text import COUNTS, is_prepared
from ddm_jax.data.sources import pair_files
from ddm_jax.data.sources.pair_files import Pair
from ddm_jax.data.splits import SPLITS, HeldOut, position, split_of, without_own_splits
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError

Row = dict[str, Any]

CHUNK = 1024  # pairs that a thread encodes at once


def prepare_pairs(
    spec: PairSpec, out: Path, *, workers: int | None = None, progress: bool = True
) -> PreparedPairs:
    """Prepares a spec in the folder `out`, or opens it if that is done.

    Args:
        spec: what to prepare.
        out: folder to make; it appears when the set is finished, and not before.
        workers: threads that tokenise; all cores by default. The result does not depend on it.
        progress: whether to show progress bars on stderr.

    Raises:
        UserError: bad spec or text, or `out` holds something else.
    """
    _check(spec)
    out = out.expanduser()
    spec = spec.absolute()
    if is_prepared(out):
        return finished(out, spec)
    check_free(out)
    for field, named in spec.files.items():
        pair_files.find(named, f"data.{field}")
    stamp, fingerprint = spec.stamp(), spec.fingerprint()
    held_out = without_own_splits(HeldOut(spec.validation_fraction, spec.test_fraction), spec.files)
    counted, empty = _count(spec, held_out)
    if not counted["train"]:
        raise _no_pair(spec)
    with temporary_sibling(out) as scratch:
        tokenizer = tokenizers.make(spec.tokenizer, lambda: _train_texts(spec, held_out))
        tallies = {split: _Tally(spec, tokenizer.vocab_size) for split in SPLITS}
        chunks = functools.partial(_encoded, tokenizer=tokenizer, threads=workers)
        rows = {
            split: tallies[split].counting(chunks(_pairs(spec, held_out, split)))
            for split in SPLITS
            if counted[split]
        }
        dtype = token_dtype(tokenizer.vocab_size)
        built = builder.write(ParallelText(rows, counted, dtype, scratch, progress), scratch)
        splits = {split: tallies[split].info(empty[split]) for split in SPLITS}
        if not splits["train"].fitting:
            raise _no_pair(spec)
        np.save(built / COUNTS, np.stack([tallies[split].counts for split in SPLITS]))
        for split in SPLITS:
            np.save(built / lengths_file(split), np.concatenate(tallies[split].lengths))
        tokenizer.save(built)
        prepared = PreparedPairs(out, spec, fingerprint, stamp, tokenizer, splits)
        publish(built, out, prepared.description())
    return prepared


class ParallelText(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes the rows of each split, in order: ids of both sides, without EOS, and the texts."""

    VERSION = tfds.core.Version("1.0.0")
    # TFDS would look for checksums of downloads beside this file.
    code_path = None

    def __init__(
        self,
        rows: Mapping[str, Iterator[Row]],
        totals: Mapping[str, int],
        dtype: np.dtype,
        data_dir: Path,
        progress: bool,
    ) -> None:
        self._rows = rows
        self._totals = totals
        self._dtype = dtype
        self._progress = progress
        super().__init__(data_dir=str(data_dir))

    def _info(self) -> tfds.core.DatasetInfo:
        features = {}
        for side in ("source", "target"):
            features[side] = tfds.features.Tensor(
                shape=(None,), dtype=self._dtype, encoding=tfds.features.Encoding.BYTES
            )
            features[f"{side}_text"] = tfds.features.Text()
        return builder.UnpublishedInfo(
            builder=self,
            description="Pairs of texts and their tokens, prepared by ddm_jax.",
            features=tfds.features.FeaturesDict(features),
            # Grain shuffles when it reads; here the order is that of the text.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self._rows}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, Row]]:
        with tqdm(
            self._rows[split],
            desc=f"tokenise {split}",
            total=self._totals[split],
            unit=" pairs",
            disable=not self._progress,
        ) as bar:
            for key, row in enumerate(bar):
                yield key, {name: self._stored(value) for name, value in row.items()}

    def _stored(self, value: np.ndarray | str) -> np.ndarray | str:
        return value if isinstance(value, str) else value.astype(self._dtype)


class _Tally:
    """What is to be known of a split, counted while its rows go by."""

    def __init__(self, spec: PairSpec, vocab_size: int) -> None:
        self.counts = np.zeros(vocab_size, np.int64)  # of words in the targets that fit
        self.lengths = [np.empty((0, 2), np.int32)]
        self._limits = np.array([spec.source_length, spec.length])
        self._words = np.zeros(2, np.int64)
        self._bytes = 0

    def counting(self, chunks: Iterable[list[Row]]) -> Iterator[Row]:
        """The rows of all chunks."""
        for rows in chunks:
            lengths = np.array([[len(r["source"]) + 1, len(r["target"]) + 1] for r in rows])
            fit = (lengths <= self._limits).all(axis=1)
            fitting = [row for row, fits in zip(rows, fit, strict=True) if fits]
            for row in fitting:
                self._bytes += len(row["target_text"].encode())
            targets = np.concatenate([np.empty(0, np.int32), *(r["target"] for r in fitting)])
            self.counts += np.bincount(targets, minlength=len(self.counts))
            self.lengths.append(lengths.astype(np.int32))
            self._words += (lengths[fit] - 1).sum(axis=0)
            yield from rows

    def info(self, empty: int) -> PairInfo:
        """The figures, when all rows have gone by."""
        lengths = np.concatenate(self.lengths)
        source_tokens, tokens = self._words.tolist()
        return PairInfo(
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


def _count(spec: PairSpec, held_out: HeldOut) -> tuple[Counter[str], Counter[str]]:
    """How many pairs each split has, and how many were left out where it, or its source, lies."""
    pairs_in, empty_in = Counter(), Counter()
    for field, named in spec.files.items():
        for source, target in pair_files.read(named):
            own = "train" if field == "source" else field
            if not (source and target):
                empty_in[own] += 1
            else:
                pairs_in[split_of(source, held_out) if own == "train" else own] += 1
    return pairs_in, empty_in


def _pairs(spec: PairSpec, held_out: HeldOut, split: str) -> Iterator[Pair]:
    """The pairs of a split that have words on both sides, in the order that they are stored in."""
    own = spec.files.get("source" if split == "train" else split, "")
    found = filter(all, pair_files.read(own or spec.source))
    if split != "train" and own:
        return found
    members = (pair for pair in found if split_of(pair[0], held_out) == split)
    # In order of a hash, the first n are a fair sample.
    return members if own else iter(sorted(members, key=lambda pair: position(pair[0])))


def _train_texts(spec: PairSpec, held_out: HeldOut) -> Iterator[str]:
    """What the tokenizer may be trained on: both sides of nothing that is held out."""
    for pair in _pairs(spec, held_out, "train"):
        yield from map(pairs.spaced, pair)


def _encoded(
    found: Iterable[Pair], tokenizer: Tokenizer, threads: int | None
) -> Iterator[list[Row]]:
    """Rows in chunks, in order."""
    found = iter(found)
    chunks = iter(lambda: list(itertools.islice(found, CHUNK)), [])
    threads = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        while group := list(itertools.islice(chunks, threads)):
            yield from pool.map(functools.partial(_encode, tokenizer=tokenizer), group)


def _encode(chunk: list[Pair], tokenizer: Tokenizer) -> list[Row]:
    return [
        {
            "source": pairs.encode(tokenizer, source),
            "target": pairs.encode(tokenizer, target),
            "source_text": source,
            "target_text": target,
        }
        for source, target in chunk
    ]
