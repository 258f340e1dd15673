"""Prepared set -> batches, with Grain.

The order is global and depends only on the seed: example p of training is entry p of the shuffled
blocks, shuffled anew each epoch, without end. Global batch s is examples [s B, (s + 1) B), of which
a process reads the rows that its devices hold. So the batches do not depend on the number of
processes or workers, and the position of an iterator is one number, the step. The same holds for
pairs, whose batches have a few shapes: see `pair_batches`.
"""

import dataclasses
import itertools
from collections.abc import Iterator

import grain
import jax
from absl import flags

from ddm_jax.data.loading.batch import HostBatch, RowsOfProcess, all_rows
from ddm_jax.data.loading.pair_batches import PairEvalBatches, PairTrainBatches, make_buckets
from ddm_jax.data.loading.text_batches import TextEvalBatches, TextTrainBatches
from ddm_jax.data.sets.kinds import PreparedSet
from ddm_jax.data.sets.pairs import PreparedPairs
from ddm_jax.errors import UserError


class TrainIterator(Iterator[HostBatch]):
    """Endless batches, see `train_iterator`; the state is the step."""

    def __init__(
        self, batches: TextTrainBatches | PairTrainBatches, workers: int, prefetch: int
    ) -> None:
        self._batches = batches
        self._workers = workers
        self._prefetch = prefetch
        self._start(0)

    def __next__(self) -> HostBatch:
        batch = next(self._flat)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns {"step": number of batches given}, for any number of processes and workers."""
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        """Resumes after `state["step"]` batches; discards what was read ahead."""
        self.close()
        self._start(int(state["step"]))

    def close(self) -> None:
        """Ends the worker processes and threads."""
        self._iterator.close()

    def _start(self, step: int) -> None:
        self._step = step
        dataset = grain.MapDataset.source(dataclasses.replace(self._batches, first=step))
        reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=self._prefetch)
        iterable = dataset.to_iter_dataset(reading)
        if self._workers:
            if not flags.FLAGS.is_parsed():
                # Grain reads flags of its own, also in a notebook or a test.
                flags.FLAGS.mark_as_parsed()
            iterable = iterable.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self._workers, per_worker_buffer_size=self._prefetch
                ),
                worker_init_fn=keep_off_accelerators,
            )
        self._iterator = iter(iterable)
        self._flat: Iterator[HostBatch] = itertools.chain.from_iterable(self._iterator)


def train_iterator(
    prepared: PreparedSet,
    *,
    batch_size: int,
    seed: int,
    rows: RowsOfProcess = all_rows,
    workers: int = 0,
    prefetch: int = 4,
) -> TrainIterator:
    """Returns endless shuffled batches of the train split.

    A batch of text is {"tokens": int32[b, L], "valid": bool[b, L]}. A batch of pairs also has
    "seen", "source" and "source_valid" (`PairRecords.read`), and one of several shapes.

    Args:
      prepared: the set to read.
      batch_size: B, over all processes; for pairs, rows of a batch of the longest bucket.
      seed: decides the order.
      rows: size of a global batch -> the b rows of it that this process reads (Layout.rows).
      workers: processes that read ahead; 0 reads ahead in a thread.
      prefetch: reads ahead per worker, each of a batch or more.

    Raises:
      UserError: B is less than 1, or the split has no block or pair.
    """
    _check_size(batch_size)
    if isinstance(prepared, PreparedPairs):
        pairs = prepared.records("train")
        buckets = make_buckets(prepared, "train", batch_size, rows)
        return TrainIterator(PairTrainBatches(pairs, buckets, seed), workers, prefetch)
    blocks = prepared.records("train")
    own_rows = tuple(rows(batch_size))
    return TrainIterator(TextTrainBatches(blocks, seed, batch_size, own_rows), workers, prefetch)


def eval_batches(
    prepared: PreparedSet,
    split: str,
    *,
    batch_size: int,
    limit: int | None = None,
    rows: RowsOfProcess = all_rows,
) -> Iterator[HostBatch]:
    """Returns every block of a split once, in order, or every pair that fits, by bucket.

    All batches have the full shape; rows after the last block hold EOS and are not valid anywhere.
    Batches are those of `train_iterator`.

    Args:
      prepared: the set to read.
      split: "train", "validation" or "test".
      batch_size: B, over all processes; for pairs, rows of a batch of the longest bucket.
      limit: read at most the first `limit` blocks or pairs; None: all.
      rows: as in `train_iterator`.

    Raises:
      UserError: B is less than 1, or the split has no block or pair.
    """
    _check_size(batch_size)
    batches: TextEvalBatches | PairEvalBatches
    if isinstance(prepared, PreparedPairs):
        pairs = prepared.records(split)
        batches = PairEvalBatches(pairs, make_buckets(prepared, split, batch_size, rows, limit))
    else:
        blocks = prepared.records(split)
        batches = TextEvalBatches(
            blocks,
            batch_size,
            own_rows=tuple(rows(batch_size)),
            count=len(blocks) if limit is None else min(limit, len(blocks)),
            filler=prepared.tokenizer.eos_id,
        )
    return iter(grain.MapDataset.source(batches).to_iter_dataset(grain.ReadOptions(num_threads=1)))


def keep_off_accelerators(worker: int, count: int) -> None:
    """Keeps JAX on the CPU in a worker, as Grain imports it: the accelerator is the parent's."""
    del worker, count
    jax.config.update("jax_platforms", "cpu")


def _check_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} is not a number of rows: make it 1 or more.")
