import collections
import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from ddm_jax.data import pair_encoding
from ddm_jax.data.build.pairs import prepare_pairs
from ddm_jax.data.loading.batch import HostBatch
from ddm_jax.data.loading.loader import TrainIterator, eval_batches, train_iterator
from ddm_jax.data.sets.pairs import PreparedPairs
from ddm_jax.errors import UserError
from tests.data.corpora import english, pair_spec, rows_of, write_pairs

B = 4
Row = tuple[bytes, bytes]


@pytest.fixture(scope="module")
def prepared(pairs_set: PreparedPairs) -> PreparedPairs:
    return dataclasses.replace(pairs_set, buckets=3)


@pytest.fixture(scope="module")
def reference(prepared: PreparedPairs) -> list[HostBatch]:
    """Global batches of more than two epochs."""
    return take(train_iterator(prepared, batch_size=B, seed=7), 60)


def take(batches: TrainIterator, count: int) -> list[HostBatch]:
    found = list(itertools.islice(batches, count))
    batches.close()
    return found


def made(folder: Path, found: list[tuple[str, str]], **changes: object) -> PreparedPairs:
    """All of these pairs in the train split, by default."""
    source = write_pairs(folder / "pairs.jsonl", found)
    spec = pair_spec(source, **{"validation_fraction": 0.0, "test_fraction": 0.0, **changes})
    return dataclasses.replace(prepare_pairs(spec, folder / "set", progress=False), buckets=3)


def assert_same(one: list[HostBatch], other: list[HostBatch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys() == {"tokens", "seen", "valid", "source", "source_valid"}
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def assert_shares_are_the_batches(shares: list[list[HostBatch]], whole: list[HostBatch]) -> None:
    joined = [
        {name: np.concatenate([share[name] for share in step]) for name in step[0]}
        for step in zip(*shares, strict=True)
    ]
    assert_same(joined, whole)


def rows(batch: HostBatch) -> list[Row]:
    """The texts of a batch of bytes, by the first EOS of each row."""
    return [
        tuple(bytes(ids[: ids.tolist().index(256)].tolist()) for ids in row)
        for row in zip(batch["source"], batch["tokens"], strict=True)
    ]


def expected(prepared: PreparedPairs, split: str) -> list[list[Row]]:
    """The texts of a split by bucket, computed only from the texts; the last are too long."""
    shapes = [(32, 64), (64, 128), (128, 256), (10**9, 10**9)]
    found: list[list[Row]] = [[] for _ in shapes]
    for pair in prepared.texts(split):
        row = tuple(f" {text}".encode() for text in pair)
        size = [len(side) + 1 for side in row]
        found[[size[0] <= s and size[1] <= n for s, n in shapes].index(True)].append(row)
    return found


def test_batches_have_their_shapes_and_types(reference: list[HostBatch]):
    shapes = {batch["tokens"].shape: batch["source"].shape for batch in reference}
    assert shapes == {(16, 64): (16, 32), (8, 128): (8, 64), (4, 256): (4, 128)}
    for batch in reference:
        assert batch["seen"].shape == batch["valid"].shape == batch["tokens"].shape
        assert batch["source_valid"].shape == batch["source"].shape
        assert batch["tokens"].dtype == batch["source"].dtype == np.int32
        assert {batch[m].dtype for m in ("seen", "valid", "source_valid")} == {np.dtype(bool)}


@pytest.mark.parametrize("predict_eos", [False, True])
def test_masks_mark_words_and_the_one_eos(prepared: PreparedPairs, predict_eos: bool):
    prepared = dataclasses.replace(prepared, predict_eos=predict_eos)
    for batch in take(train_iterator(prepared, batch_size=B, seed=7), 9):
        for side, mask, eos in (
            ("tokens", "seen", 1),
            ("tokens", "valid", int(predict_eos)),
            ("source", "source_valid", 1),
        ):
            for ids, marked in zip(batch[side], batch[mask], strict=True):
                words = ids.tolist().index(256)
                assert set(ids[words:].tolist()) == {256}
                assert marked.tolist() == [True] * (words + eos) + [False] * (
                    len(ids) - words - eos
                )


def test_training_reads_the_pairs_of_each_bucket_in_whole_epochs(
    prepared: PreparedPairs, reference: list[HostBatch]
):
    members = expected(prepared, "train")
    assert all(len(found) > B for found in members)
    for size, found in zip((64, 128, 256), members[:3], strict=True):
        of_size = [batch for batch in reference if batch["tokens"].shape[1] == size]
        stream = list(itertools.chain(*map(rows, of_size)))
        epochs = [stream[i : i + len(found)] for i in range(0, len(stream), len(found))]
        for epoch in epochs[:-1]:
            assert collections.Counter(epoch) == collections.Counter(found)
            assert epoch != found
        # The last one is not whole: nothing comes more often than in the bucket.
        assert not collections.Counter(epochs[-1]) - collections.Counter(found)
    assert len(epochs) > 2
    assert epochs[0] != epochs[1]


def test_each_epoch_has_its_batches_of_each_bucket_in_another_order(prepared: PreparedPairs):
    counts = [len(found) for found in expected(prepared, "train")[:3]]
    times = [round(n / size) for n, size in zip(counts, (20, 10, 5), strict=True)]
    assert any(n // size < t for n, size, t in zip(counts, (20, 10, 5), times, strict=True))
    total = sum(times)
    batches = take(train_iterator(prepared, batch_size=5, seed=7), 4 * total)
    lengths = [batch["tokens"].shape[1] for batch in batches]
    epochs = [lengths[i : i + total] for i in range(0, len(lengths), total)]
    assert all(sorted(epoch) == sorted(np.repeat((64, 128, 256), times)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4


def test_seed_decides_the_order(prepared: PreparedPairs, reference: list[HostBatch]):
    assert_same(take(train_iterator(prepared, batch_size=B, seed=7), 5), reference[:5])
    other = take(train_iterator(prepared, batch_size=B, seed=8), 20)
    shapes = [[batch["tokens"].shape for batch in part] for part in (other, reference[:20])]
    assert shapes[0] != shapes[1]
    firsts = [
        next(batch for batch in part if batch["tokens"].shape[1] == 64)["tokens"]
        for part in (other, reference)
    ]
    assert (firsts[0] != firsts[1]).any()


@pytest.mark.slow
def test_order_is_the_same_for_any_number_of_workers(
    prepared: PreparedPairs, reference: list[HostBatch]
):
    batches = train_iterator(prepared, batch_size=B, seed=7, workers=2)
    assert_same(take(batches, 9), reference[:9])


@pytest.mark.parametrize("count", [2, 4])
def test_process_reads_its_contiguous_rows(
    prepared: PreparedPairs, reference: list[HostBatch], count: int
):
    shares = [
        take(train_iterator(prepared, batch_size=B, seed=7, rows=rows_of(k, count)), 9)
        for k in range(count)
    ]
    assert_shares_are_the_batches(shares, reference[:9])


def test_resumed_iterator_goes_on_where_it_stopped(
    prepared: PreparedPairs, reference: list[HostBatch]
):
    first = train_iterator(prepared, batch_size=B, seed=7)
    for _ in range(33):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    first.close()
    assert state == {"step": 33}
    shares = []
    for k in range(2):
        share = train_iterator(prepared, batch_size=B, seed=7, rows=rows_of(k, 2))
        next(share)
        share.set_state(state)
        shares.append(take(share, 9))
    assert_shares_are_the_batches(shares, reference[33:42])


@pytest.mark.parametrize("limit", [None, 0, 1, 7])
@pytest.mark.parametrize("count", [1, 2])
def test_evaluation_reads_every_pair_that_fits_once(
    prepared: PreparedPairs, limit: int | None, count: int
):
    def share(k: int) -> list[HostBatch]:
        options = {"limit": limit, "rows": rows_of(k, count)}
        return list(eval_batches(prepared, "validation", batch_size=B, **options))

    whole = (
        share(0)
        if count == 1
        else list(eval_batches(prepared, "validation", batch_size=B, limit=limit))
    )
    assert_shares_are_the_batches([share(k) for k in range(count)], whole)
    buckets = expected(prepared, "validation")
    assert buckets[3]
    if limit is not None:
        fits = set(itertools.chain(*buckets[:3]))
        order = [tuple(f" {t}".encode() for t in pair) for pair in prepared.texts("validation")]
        first = [row for row in order if row in fits][:limit]
        buckets = [[row for row in found if row in first] for found in buckets]
    wanted = iter(
        (found[i : i + size], (size, length))
        for found, size, length in zip(buckets, (16, 8, 4), (64, 128, 256), strict=False)
        for i in range(0, len(found), size)
    )
    for batch in whole:
        found, shape = next(wanted)
        assert batch["tokens"].shape == shape
        n = len(found)
        assert rows(batch)[:n] == found
        # A row that stands for nothing is an empty text that carries no loss.
        assert (batch["tokens"][n:] == 256).all()
        assert (batch["source"][n:] == 256).all()
        assert not batch["valid"][n:].any()
        assert batch["valid"][:n].any(axis=1).all()
        for mask in ("seen", "source_valid"):
            first = np.arange(batch[mask].shape[1]) == 0
            np.testing.assert_array_equal(batch[mask][n:], np.tile(first, (shape[0] - n, 1)))
    assert next(wanted, None) is None


def test_filler_carries_no_loss_where_eos_does(prepared: PreparedPairs):
    prepared = dataclasses.replace(prepared, predict_eos=True)
    (batch,) = eval_batches(prepared, "validation", batch_size=64, limit=1)
    assert batch["valid"][0].sum() == batch["seen"][0].sum()
    assert not batch["valid"][1:].any()


def test_one_bucket_has_every_pair_that_fits(pairs_set: PreparedPairs):
    whole = list(eval_batches(pairs_set, "test", batch_size=B))
    assert {batch["tokens"].shape for batch in whole} == {(4, 256)}
    found = expected(pairs_set, "test")
    read = list(itertools.chain(*map(rows, whole)))[: sum(map(len, found[:3]))]
    assert collections.Counter(read) == collections.Counter(itertools.chain(*found[:3]))


def test_bucket_without_a_pair_has_no_batch(tmp_path: Path):
    found = [(f"{i}" * 9, "word " * 30) for i in range(12)] + [("a", "b")] * 12
    prepared = made(tmp_path, found)
    batches = take(train_iterator(prepared, batch_size=4, seed=0), 12)
    assert {batch["tokens"].shape for batch in batches} == {(16, 64), (4, 256)}
    evaluated = [b["tokens"].shape for b in eval_batches(prepared, "train", batch_size=4)]
    assert evaluated == [(16, 64)] + [(4, 256)] * 3


def test_few_pairs_are_repeated_within_a_batch(tmp_path: Path):
    found = [("ab", "1"), ("a", "2"), ("b", "3")]
    prepared = made(tmp_path, found)
    (batch,) = take(train_iterator(prepared, batch_size=3, seed=0), 1)
    wanted = sorted((f" {a}".encode(), f" {b}".encode()) for a, b in found)
    assert batch["tokens"].shape == (12, 64)
    for i in range(0, 12, 3):
        assert sorted(rows(batch)[i : i + 3]) == wanted


def test_longest_pair_that_fits_fills_its_row(tmp_path: Path):
    found = [("s" * 126, "t" * 254), ("s" * 127, "t"), ("s", "t" * 255)]
    prepared = made(tmp_path, found)
    assert prepared.splits["train"].long == 2
    (batch,) = eval_batches(prepared, "train", batch_size=1)
    assert rows(batch) == [(b" " + b"s" * 126, b" " + b"t" * 254)]
    assert batch["seen"].all()
    assert batch["source_valid"].all()
    assert batch["valid"].sum() == 255


def test_tokens_are_texts_of_a_trained_tokenizer(tmp_path: Path):
    texts = english(200)
    found = [(text[: 9 * i], text) for i, text in enumerate(texts, 1)] + [("e", texts[0])]
    prepared = made(tmp_path, found, tokenizer="sentencepiece:600", length=64, source_length=32)
    read = [
        tuple(pair_encoding.decode(prepared.tokenizer, ids) for ids in row)
        for batch in eval_batches(prepared, "train", batch_size=B)
        for row in zip(batch["source"], batch["tokens"], strict=True)
        if row[1][0] != prepared.tokenizer.eos_id
    ]
    limits = (prepared.spec.source_length, prepared.length)
    fit = (prepared.lengths("train") <= limits).all(axis=1)
    assert 0 < fit.sum() < len(found)
    assert prepared.lengths("train")[-1, 0] == 2  # a source of one token and its EOS
    kept = [pair for pair, fits in zip(prepared.texts("train"), fit, strict=True) if fits]
    assert collections.Counter(read) == collections.Counter(kept)


def test_empty_batch_is_refused(prepared: PreparedPairs):
    with pytest.raises(UserError, match="batch_size=0 is not a number of rows"):
        train_iterator(prepared, batch_size=0, seed=0)
    with pytest.raises(UserError, match="batch_size=0 is not a number of rows"):
        eval_batches(prepared, "test", batch_size=0)


def test_split_without_a_pair_that_fits_is_refused(tmp_path: Path):
    prepared = made(tmp_path, [("a", "b"), ("a" * 200, "b")])
    with pytest.raises(UserError, match=r"test split .* has no pair that fits data\.length=256"):
        eval_batches(prepared, "test", batch_size=B)
