"""Prepared pairs -> batches of a few shapes, each of pairs of about its length.

A pair belongs to the smallest bucket that holds both sides. A bucket of half the length has twice
the rows, so every batch has as many positions. Batches of training come by epochs: each bucket has
about the batches that its pairs fill, in an order that is shuffled anew, and each takes the next
pairs of the bucket's own endless shuffled stream.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Sequence

import grain
import numpy as np

from ddm_jax.data.loading.shuffle import shuffled
from ddm_jax.data.pair_encoding import bucket_of, buckets
from ddm_jax.data.sets.pair_records import Pairs
from ddm_jax.data.sets.pairs import PreparedPairs

Batch = dict[str, np.ndarray]
RowsOf = Callable[[int], Sequence[int]]


def all_rows(size: int) -> range:
    """Those of a batch where there is one process."""
    return range(size)


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Pairs of about one length.

    Attributes:
        source_length: S of its batches.
        length: N of its batches.
        rows: of a batch, over all processes.
        share: those of this process.
        members: int[n] numbers of its pairs, in the order of the split.
    """

    source_length: int
    length: int
    rows: int
    share: tuple[int, ...]
    members: np.ndarray

    @property
    def batches(self) -> int:
        """That hold each pair once; the last may not be full."""
        return -(-len(self.members) // self.rows)

    def read(self, pairs: Pairs, members: np.ndarray) -> Batch:
        """The share of this process in a batch."""
        return pairs.read(members, len(self.share), self.source_length, self.length)


def fill(
    prepared: PreparedPairs, split: str, batch_size: int, rows: RowsOf, limit: int | None = None
) -> tuple[Bucket, ...]:
    """The buckets of a split that have a pair, the shortest first.

    Args:
        prepared: the pairs.
        split: of which.
        batch_size: rows of a batch of the longest bucket.
        rows: size of a batch -> the rows that this process reads.
        limit: only the first so many pairs of those that fit.
    """
    shapes = buckets(prepared.length, prepared.spec.source_length, prepared.buckets)
    kinds = bucket_of(prepared.lengths(split), shapes)
    fitting = np.flatnonzero(kinds < len(shapes))[:limit]
    found = []
    for k, (source_length, length) in enumerate(shapes):
        size = batch_size * 2 ** (len(shapes) - 1 - k)
        found.append(
            Bucket(
                source_length,
                length,
                rows=size,
                share=tuple(rows(size)),
                members=fitting[kinds[fitting] == k],
            )
        )
    return tuple(bucket for bucket in found if len(bucket.members))


@dataclasses.dataclass(frozen=True)
class PairTrainBatches:
    """Batch `first` + i, alone in a list, at index i, for one process."""

    pairs: Pairs
    buckets: tuple[Bucket, ...]
    seed: int
    first: int = 0

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> list[Batch]:
        times = tuple(max(1, round(len(b.members) / b.rows)) for b in self.buckets)
        epoch, place = divmod(self.first + index, sum(times))
        kinds, ranks = _schedule(times, self.seed, epoch)
        kind = kinds[place]
        bucket, order = self.buckets[kind], self._orders[kind]
        begin = (epoch * times[kind] + ranks[place]) * bucket.rows
        members = bucket.members[[order[int(begin) + row] for row in bucket.share]]
        return [bucket.read(self.pairs, members)]

    @functools.cached_property
    def _orders(self) -> tuple[grain.MapDataset[int], ...]:
        return tuple(
            shuffled(len(bucket.members), f"{self.seed}, sources of {bucket.source_length}")
            for bucket in self.buckets
        )


@dataclasses.dataclass(frozen=True)
class PairEvalBatches:
    """Batch i at index i, for one process: all of the first bucket, then all of the next."""

    pairs: Pairs
    buckets: tuple[Bucket, ...]

    def __len__(self) -> int:
        return sum(bucket.batches for bucket in self.buckets)

    def __getitem__(self, index: int) -> Batch:
        for bucket in self.buckets:
            if index < bucket.batches:
                break
            index -= bucket.batches
        begin = index * bucket.rows
        wanted = [begin + row for row in bucket.share]
        return bucket.read(
            self.pairs, bucket.members[[i for i in wanted if i < len(bucket.members)]]
        )


# The schedule of a long epoch takes a while; neighbouring batches have the same.
@functools.lru_cache(maxsize=2)
def _schedule(times: tuple[int, ...], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """The bucket of each batch of an epoch, and the how manyth of that bucket it is."""
    total = sum(times)
    order = shuffled(total, f"{seed}, buckets")
    slots = np.array([order[epoch * total + i] for i in range(total)])
    kinds = np.repeat(np.arange(len(times)), times)[slots]
    ranks = np.empty(total, np.int64)
    for kind, count in enumerate(times):
        ranks[kinds == kind] = np.arange(count)
    return kinds, ranks
