import dataclasses
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ddm_jax.data.build.text import prepare_text
from ddm_jax.data.loading.batch import HostBatch
from ddm_jax.data.loading.loader import TrainIterator, eval_batches, train_iterator
from ddm_jax.data.sets.text import PreparedText
from ddm_jax.errors import UserError
from tests.data.corpora import rows_of

B = 24


def take(batches: TrainIterator, count: int) -> list[HostBatch]:
    found = list(itertools.islice(batches, count))
    batches.close()
    return found


def assert_same(one: list[HostBatch], other: list[HostBatch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys() == {"tokens", "valid"}
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture(scope="module")
def reference(wrapped: PreparedText) -> list[HostBatch]:
    """Enough global batches for more than two epochs."""
    count = 2 * wrapped.splits["train"].blocks // B + 2
    return take(train_iterator(wrapped, batch_size=B, seed=7), count)


def test_batches_have_their_shapes_and_types(reference: list[HostBatch]):
    for batch in reference:
        assert batch["tokens"].shape == batch["valid"].shape == (B, 32)
        assert batch["tokens"].dtype == np.int32
        assert batch["valid"].dtype == np.bool_
        assert batch["valid"].all()


def test_each_epoch_has_every_block_once_in_another_order(
    wrapped: PreparedText, reference: list[HostBatch]
):
    blocks = wrapped.records("train")
    rows = np.concatenate([batch["tokens"] for batch in reference])
    n = len(blocks)
    corpus = blocks.read(range(n))[0]
    epochs = [rows[:n], rows[n : 2 * n]]
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch, axis=0), np.sort(corpus, axis=0))
        assert sorted(map(bytes, epoch)) == sorted(map(bytes, corpus))
        assert (epoch != corpus).any(axis=1).mean() > 0.9
    assert (epochs[0] != epochs[1]).any(axis=1).mean() > 0.9


def test_seed_decides_the_order(wrapped: PreparedText, reference: list[HostBatch]):
    epoch = len(reference) // 2
    assert_same(take(train_iterator(wrapped, batch_size=B, seed=7), 5), reference[:5])
    other = take(train_iterator(wrapped, batch_size=B, seed=8), 2 * epoch)
    rows = [np.concatenate([b["tokens"] for b in part]) for part in (other, reference[1:])]
    assert (rows[0][: len(rows[1])] != rows[1][: len(rows[0])]).any(axis=1).mean() > 0.9
    # The first epoch of one seed is not the second of its neighbour.
    n = wrapped.splits["train"].blocks
    ours = np.concatenate([b["tokens"] for b in reference])
    assert (rows[0][:n] != ours[n : 2 * n]).any(axis=1).mean() > 0.9


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_order_is_the_same_for_any_number_of_workers(
    wrapped: PreparedText, reference: list[HostBatch], workers: int
):
    batches = train_iterator(wrapped, batch_size=B, seed=7, workers=workers)
    assert_same(take(batches, 9), reference[:9])


@pytest.mark.parametrize("count", [2, 3, 8])
def test_process_reads_its_contiguous_rows(
    wrapped: PreparedText, reference: list[HostBatch], count: int
):
    shares = [
        take(train_iterator(wrapped, batch_size=B, seed=7, rows=rows_of(k, count)), 4)
        for k in range(count)
    ]
    for step in range(4):
        for name in ("tokens", "valid"):
            joined = np.concatenate([share[step][name] for share in shares])
            np.testing.assert_array_equal(joined, reference[step][name])


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.slow
def test_resumed_iterator_goes_on_where_it_stopped(
    wrapped: PreparedText, reference: list[HostBatch], workers: int
):
    first = train_iterator(wrapped, batch_size=B, seed=7, workers=workers)
    for _ in range(5):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    first.close()
    second = train_iterator(wrapped, batch_size=B, seed=7, workers=workers)
    next(second)
    second.set_state(state)
    assert second.get_state() == state == {"step": 5}
    assert_same(take(second, 4), reference[5:9])


def test_state_is_good_for_another_number_of_processes(
    wrapped: PreparedText, reference: list[HostBatch]
):
    whole = train_iterator(wrapped, batch_size=B, seed=7)
    for _ in range(3):
        next(whole)
    half = train_iterator(wrapped, batch_size=B, seed=7, rows=rows_of(1, 2))
    half.set_state(whole.get_state())
    np.testing.assert_array_equal(next(half)["tokens"], reference[3]["tokens"][B // 2 :])
    whole.close()
    half.close()


def test_small_split_is_repeated_within_a_batch(wrapped: PreparedText):
    n = wrapped.splits["train"].blocks
    (batch,) = take(train_iterator(wrapped, batch_size=2 * n, seed=0), 1)
    corpus = sorted(map(bytes, wrapped.records("train").read(range(n))[0]))
    assert sorted(map(bytes, batch["tokens"][:n])) == corpus
    assert sorted(map(bytes, batch["tokens"][n:])) == corpus


@pytest.mark.parametrize("limit", [None, 0, 1, 24, 25])
@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_reads_every_block_once_in_order(
    wrapped: PreparedText, limit: int | None, count: int
):
    n = wrapped.splits["validation"].blocks
    assert n % B  # so that the last batch is not full
    shares = [
        list(
            eval_batches(
                wrapped,
                "validation",
                batch_size=B,
                limit=limit,
                rows=rows_of(k, count),
            )
        )
        for k in range(count)
    ]
    wanted = n if limit is None else limit
    expected = wrapped.records("validation").read(range(wanted))[0] if wanted else np.empty((0, 32))
    assert all(len(share) == -(-wanted // B) for share in shares)
    joined = {
        name: np.concatenate(
            [np.concatenate([s[name] for s in step]) for step in zip(*shares, strict=True)]
            or [np.empty((0, 32), bool)]
        )
        for name in ("tokens", "valid")
    }
    np.testing.assert_array_equal(joined["tokens"][:wanted], expected)
    assert joined["valid"][:wanted].all()
    assert not joined["valid"][wanted:].any()
    assert len(joined["tokens"]) % B == 0


def test_padding_is_not_valid(tmp_path: Path, wrapped: PreparedText):
    spec = dataclasses.replace(wrapped.spec, pack="pad", length=100)
    prepared = prepare_text(spec, tmp_path / "set", progress=False)
    (batch,) = take(train_iterator(prepared, batch_size=B, seed=0), 1)
    for tokens, valid in zip(batch["tokens"], batch["valid"], strict=True):
        ends = np.flatnonzero(tokens == prepared.tokenizer.eos_id)
        expected = ends[0] + 1 if len(ends) else 100
        assert valid.tolist() == [True] * expected + [False] * (100 - expected)


def test_empty_batch_is_refused(wrapped: PreparedText):
    with pytest.raises(UserError, match="batch_size=0 is not a number of rows"):
        train_iterator(wrapped, batch_size=0, seed=0)
    with pytest.raises(UserError, match="batch_size=0 is not a number of rows"):
        eval_batches(wrapped, "test", batch_size=0)


def test_split_without_blocks_names_the_remedy(tmp_path: Path, wrapped: PreparedText):
    spec = dataclasses.replace(wrapped.spec, validation_fraction=0.0)
    prepared = prepare_text(spec, tmp_path / "set", progress=False)
    with pytest.raises(UserError, match=r"no block of 32 .*raise data\.validation_fraction"):
        eval_batches(prepared, "validation", batch_size=B)


@pytest.mark.slow
def test_reading_does_not_start_a_jax_backend(wrapped: PreparedText):
    """Whoever reads in another process must leave the accelerator to the one that trains."""
    code = f"""
import pathlib
from jax._src import xla_bridge
from ddm_jax.data.loading.loader import keep_off_accelerators, train_iterator
from ddm_jax.data.sets.text import open_text
prepared = open_text(pathlib.Path({str(wrapped.folder)!r}))
next(train_iterator(prepared, batch_size=2, seed=0))
assert not xla_bridge.backends_are_initialized()
keep_off_accelerators(0, 1)
assert not xla_bridge.backends_are_initialized()
import jax
assert {{d.platform for d in jax.devices()}} == {{"cpu"}}
"""
    subprocess.run([sys.executable, "-c", code], check=True)
