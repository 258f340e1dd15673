"""Prepared pairs -> batches of a few shapes; the pairs of a batch have similar lengths.

A pair belongs to the smallest bucket that holds both sides. A bucket of half the length has twice
the rows, so every batch has the same number of positions. Training goes by epochs: in an epoch each
bucket has about as many batches as its pairs fill, in an order that is shuffled anew, and each
batch takes the next pairs of the bucket's own endless shuffled stream.
"""

import dataclasses
import functools
import sys

import grain
import numpy as np

from ddm_jax.data.loading.batch import HostBatch, RowsOfProcess
from ddm_jax.data.loading.shuffle import shuffled
from ddm_jax.data.pair_encoding import bucket_of, bucket_shapes
from ddm_jax.data.sets.pair_records import PairRecords
from ddm_jax.data.sets.pairs import PreparedPairs


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Pairs of similar length, which form batches of one shape.

    Attributes:
      source_length: S of its batches.
      length: N of its batches.
      rows: rows of a batch, over all processes.
      own_rows: the rows of a batch that this process reads.
      members: int[n], numbers of its pairs, in the order of the split.
    """

    source_length: int
    length: int
    rows: int
    own_rows: tuple[int, ...]
    members: np.ndarray

    @property
    def batches(self) -> int:
        """Number of batches that hold each pair once; the last may not be full."""
        return -(-len(self.members) // self.rows)

    def read(self, records: PairRecords, members: np.ndarray) -> HostBatch:
        """Reads these pairs as the part of a batch that belongs to this process."""
        return records.read(members, len(self.own_rows), self.source_length, self.length)


def make_buckets(
    prepared: PreparedPairs,
    split: str,
    batch_size: int,
    rows: RowsOfProcess,
    limit: int | None = None,
) -> tuple[Bucket, ...]:
    """Returns the buckets of a split that have a pair, the shortest first.

    Args:
      prepared: the pairs.
      split: "train", "validation" or "test".
      batch_size: rows of a batch of the longest bucket.
      rows: size of a batch -> the rows that this process reads.
      limit: use only the first `limit` pairs of those that fit; None: all.
    """
    shapes = bucket_shapes(prepared.length, prepared.spec.source_length, prepared.buckets)
    bucket_numbers = bucket_of(prepared.lengths(split), shapes)
    fitting = np.flatnonzero(bucket_numbers < len(shapes))[:limit]
    buckets = []
    for number, (source_length, length) in enumerate(shapes):
        size = batch_size * 2 ** (len(shapes) - 1 - number)
        buckets.append(
            Bucket(
                source_length,
                length,
                rows=size,
                own_rows=tuple(rows(size)),
                members=fitting[bucket_numbers[fitting] == number],
            )
        )
    return tuple(bucket for bucket in buckets if len(bucket.members))


@dataclasses.dataclass(frozen=True)
class PairTrainBatches:
    """A Grain source of training batches for one process: [batch `first` + i] at index i.

    Attributes:
      records: the pairs.
      buckets: see `make_buckets`.
      seed: decides the order.
      first: number of the batch at index 0.
    """

    records: PairRecords
    buckets: tuple[Bucket, ...]
    seed: int
    first: int = 0

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> list[HostBatch]:
        per_epoch = tuple(max(1, round(len(b.members) / b.rows)) for b in self.buckets)
        epoch, place = divmod(self.first + index, sum(per_epoch))
        bucket_numbers, ranks = _schedule(per_epoch, self.seed, epoch)
        number = bucket_numbers[place]
        bucket, order = self.buckets[number], self._orders[number]
        begin = (epoch * per_epoch[number] + ranks[place]) * bucket.rows
        members = bucket.members[[order[int(begin) + row] for row in bucket.own_rows]]
        return [bucket.read(self.records, members)]

    @functools.cached_property
    def _orders(self) -> tuple[grain.MapDataset[int], ...]:
        return tuple(
            shuffled(len(bucket.members), f"{self.seed}, sources of {bucket.source_length}")
            for bucket in self.buckets
        )


@dataclasses.dataclass(frozen=True)
class PairEvalBatches:
    """A Grain source of batches for one process: all of the first bucket, then all of the next.

    Attributes:
      records: the pairs.
      buckets: see `make_buckets`.
    """

    records: PairRecords
    buckets: tuple[Bucket, ...]

    def __len__(self) -> int:
        return sum(bucket.batches for bucket in self.buckets)

    def __getitem__(self, index: int) -> HostBatch:
        for bucket in self.buckets:
            if index < bucket.batches:
                break
            index -= bucket.batches
        begin = index * bucket.rows
        wanted = [begin + row for row in bucket.own_rows]
        return bucket.read(
            self.records, bucket.members[[i for i in wanted if i < len(bucket.members)]]
        )


# The schedule of a long epoch takes a while to compute; neighbouring batches have the same.
@functools.lru_cache(maxsize=2)
def _schedule(per_epoch: tuple[int, ...], seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the bucket of each batch of an epoch, and its rank among the batches of that bucket.

    Args:
      per_epoch: number of batches of each bucket in an epoch.
      seed: decides the order.
      epoch: number of the epoch.
    """
    total = sum(per_epoch)
    order = shuffled(total, f"{seed}, buckets")
    slots = np.array([order[epoch * total + i] for i in range(total)])
    bucket_numbers = np.repeat(np.arange(len(per_epoch)), per_epoch)[slots]
    ranks = np.empty(total, np.int64)
    for number, count in enumerate(per_epoch):
        ranks[bucket_numbers == number] = np.arange(count)
    return bucket_numbers, ranks
