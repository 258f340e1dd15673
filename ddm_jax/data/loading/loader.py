"""Prepared set -> batches, with Grain.

The order is global and a function of the seed: example p of training is entry p of the shuffled
blocks, shuffled anew each epoch, without end. Global batch s is examples [s B, (s + 1) B), of which
a process reads those rows that its devices hold. So the batches do not depend on the number of
processes or workers, and the position of an iterator is one number, the step. The same holds of
pairs, whose batches have a few shapes: see `pair_batches`.
"""

import dataclasses
import functools
import itertools
import sys
from collections.abc import Iterator, Sequence

import grain
import jax
import numpy as np
from absl import flags

from ddm_jax.data.loading import pair_batches
from ddm_jax.data.loading.pair_batches import (
    Batch,
    PairEvalBatches,
    PairTrainBatches,
    RowsOf,
    all_rows,
)
from ddm_jax.data.loading.shuffle import shuffled
from ddm_jax.data.sets.pairs import PreparedPairs
from ddm_jax.data.sets.text import PreparedSet
from ddm_jax.data.sets.text_records import Blocks
from ddm_jax.errors import UserError

RECORDS = 256  # read at once, at least: array_record starts threads for every read


class TrainIterator(Iterator[Batch]):
    """Endless batches as of `train_iterator`; the state is the step."""

    def __init__(
        self, batches: "_TrainBatches | PairTrainBatches", workers: int, prefetch: int
    ) -> None:
        self._batches = batches
        self._workers = workers
        self._prefetch = prefetch
        self._start(0)

    def __next__(self) -> Batch:
        batch = next(self._read)
        self._step += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """{"step": number of batches given}; good for any number of processes and workers."""
        return {"step": self._step}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on after `state["step"]` batches; what was read ahead is thrown away."""
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
                # Grain asks for flags of its own, also in a notebook or a test.
                flags.FLAGS.mark_as_parsed()
            iterable = iterable.mp_prefetch(
                grain.MultiprocessingOptions(
                    num_workers=self._workers, per_worker_buffer_size=self._prefetch
                ),
                worker_init_fn=_keep_off_accelerators,
            )
        self._iterator = iter(iterable)
        self._read = itertools.chain.from_iterable(self._iterator)


def train_iterator(
    prepared: PreparedSet | PreparedPairs,
    *,
    batch_size: int,
    seed: int,
    rows: RowsOf = all_rows,
    workers: int = 0,
    prefetch: int = 4,
) -> TrainIterator:
    """Endless shuffled batches of the train split.

    Those of blocks are {"tokens": int32[b, L], "valid": bool[b, L]}; those of pairs also have
    "seen", "source" and "source_valid" (`pair_records.Pairs.read`), and one of several shapes.

    Args:
        prepared: the set to read.
        batch_size: B, over all processes; of pairs, rows of a batch of the longest bucket.
        seed: decides the order.
        rows: size of a global batch -> the b rows of it that this process reads (Layout.rows).
        workers: processes that read ahead; 0 reads ahead in a thread.
        prefetch: reads ahead, each of a batch or more, by each worker.

    Raises:
        UserError: B is less than 1, or the split has no block or pair.
    """
    _check_size(batch_size)
    if isinstance(prepared, PreparedPairs):
        pairs = prepared.pairs("train")
        buckets = pair_batches.fill(prepared, "train", batch_size, rows)
        return TrainIterator(PairTrainBatches(pairs, buckets, seed), workers, prefetch)
    blocks = prepared.blocks("train")
    own = tuple(rows(batch_size))
    return TrainIterator(_TrainBatches(blocks, seed, batch_size, own), workers, prefetch)


def eval_batches(
    prepared: PreparedSet | PreparedPairs,
    split: str,
    *,
    batch_size: int,
    limit: int | None = None,
    rows: RowsOf = all_rows,
) -> Iterator[Batch]:
    """Every block of a split once, in order, or every pair that fits, by bucket.

    All batches have the full shape; rows after the last block hold EOS and are nowhere valid.
    Batches are as of `train_iterator`.

    Args:
        prepared: the set to read.
        split: "train", "validation" or "test".
        batch_size: B, over all processes; of pairs, rows of a batch of the longest bucket.
        limit: read the first so many blocks or pairs at most.
        rows: as in training.

    Raises:
        UserError: B is less than 1, or the split has no block or pair.
    """
    _check_size(batch_size)
    if isinstance(prepared, PreparedPairs):
        pairs = prepared.pairs(split)
        buckets = pair_batches.fill(prepared, split, batch_size, rows, limit)
        batches = PairEvalBatches(pairs, buckets)
    else:
        blocks = prepared.blocks(split)
        count = len(blocks) if limit is None else min(limit, len(blocks))
        batches = _EvalBatches(
            blocks, batch_size, tuple(rows(batch_size)), count, prepared.tokenizer.eos_id
        )
    return iter(grain.MapDataset.source(batches).to_iter_dataset(grain.ReadOptions(num_threads=1)))


@dataclasses.dataclass(frozen=True)
class _TrainBatches:
    """Batches first + i n .. first + (i + 1) n - 1 at index i, for one process; n is `at_once`."""

    blocks: Blocks
    seed: int
    batch_size: int
    rows: tuple[int, ...]
    first: int = 0

    @property
    def at_once(self) -> int:
        return -(-RECORDS // len(self.rows))

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> list[Batch]:
        first = self.first + index * self.at_once
        begins = range(first * self.batch_size, (first + self.at_once) * self.batch_size)
        rows = [begin + row for begin in begins[:: self.batch_size] for row in self.rows]
        batches = _read(self.blocks, [self._order[row] for row in rows])
        parts = {name: np.split(x, self.at_once) for name, x in batches.items()}
        return [dict(zip(parts, part, strict=True)) for part in zip(*parts.values(), strict=True)]

    @functools.cached_property
    def _order(self) -> grain.MapDataset[int]:
        return shuffled(len(self.blocks), str(self.seed))


@dataclasses.dataclass(frozen=True)
class _EvalBatches:
    """Batch i at index i, for one process."""

    blocks: Blocks
    batch_size: int
    rows: tuple[int, ...]
    count: int
    filler: int

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        wanted = [index * self.batch_size + row for row in self.rows]
        batch = _read(self.blocks, [i for i in wanted if i < self.count])
        missing = ((0, len(wanted) - len(batch["tokens"])), (0, 0))
        return {
            "tokens": np.pad(batch["tokens"], missing, constant_values=self.filler),
            "valid": np.pad(batch["valid"], missing, constant_values=False),
        }


def _read(blocks: Blocks, indices: Sequence[int]) -> Batch:
    tokens, valid = blocks.read(indices)
    return {"tokens": tokens, "valid": valid}


def _check_size(batch_size: int) -> None:
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size} is not a number of rows: make it 1 or more.")


def _keep_off_accelerators(worker: int, count: int) -> None:
    """Grain imports JAX in its workers, which must not take the accelerator from their parent."""
    del worker, count
    jax.config.update("jax_platforms", "cpu")
