"""Preparation of pairs: splits, figures, reuse, and what is refused."""

import collections
import dataclasses
import functools
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ddm_jax.config import DataConfig
from ddm_jax.data.build import pairs as prepare_module
from ddm_jax.data.open import open_or_prepare, prepare_command
from ddm_jax.data.sets.kinds import default_folder, open_folder, spec_of
from ddm_jax.data.sets.pairs import PairSpec, PreparedPairs
from ddm_jax.data.sets.text import PreparedText
from ddm_jax.data.sources.pair_files import Pair
from ddm_jax.data.splits import SPLITS, hash_position
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.errors import UserError
from tests.data.corpora import make_pairs, pair_spec, write_pairs

prepare_pairs = functools.partial(prepare_module.prepare_pairs, progress=False)


def config(spec: PairSpec, root: Path, **changes: Any) -> DataConfig:
    fields = {**dataclasses.asdict(spec), "root": str(root), "eos": "given"}
    return DataConfig(**{**fields, **changes})


def too_long(pair: Pair, spec: PairSpec) -> bool:
    """A space before and an EOS behind each text, of bytes."""
    source, target = (len(text.encode()) + 2 for text in pair)
    return source > spec.source_length or target > spec.length


def test_tokenizer_is_trained_on_both_sides_of_the_train_split(
    tmp_path: Path, pair_source: str, monkeypatch: pytest.MonkeyPatch
):
    seen: list[str] = []

    def spy(spec: str, documents: object) -> tokenizers.Tokenizer:
        seen.extend(documents())
        return tokenizers.pretrained_tokenizer("bytes")

    monkeypatch.setattr(tokenizers, "make", spy)
    prepared = prepare_pairs(pair_spec(pair_source), tmp_path / "set")
    assert seen == [f" {text}" for pair in prepared.texts("train") for text in pair]


def test_every_pair_with_two_sides_is_in_one_split(pairs_set: PreparedPairs, all_pairs: list[Pair]):
    texts = {split: pairs_set.texts(split) for split in SPLITS}
    whole = [pair for pair in all_pairs if all(pair)]
    assert 0 < len(whole) < len(all_pairs)
    assert collections.Counter(itertools.chain(*texts.values())) == collections.Counter(whole)
    assert all(len(found) > 10 for found in texts.values())
    # Equal sources, of which there are some, are in one split.
    sources = {split: {source for source, _ in found} for split, found in texts.items()}
    assert sum(map(len, sources.values())) == len({a for a, _ in whole}) < len(whole)


def test_order_is_that_of_the_file_and_of_the_hash(pairs_set: PreparedPairs, all_pairs: list[Pair]):
    train = pairs_set.texts("train")
    places = iter(all_pairs)
    assert all(pair in places for pair in train)  # a subsequence
    for split in ("validation", "test"):
        found = [hash_position(source) for source, _ in pairs_set.texts(split)]
        assert found == sorted(found)


def test_figures_are_those_of_the_pairs(pairs_set: PreparedPairs, all_pairs: list[Pair]):
    for split in SPLITS:
        texts, info = pairs_set.texts(split), pairs_set.splits[split]
        fitting = [pair for pair in texts if not too_long(pair, pairs_set.spec)]
        assert 0 < len(fitting) < len(texts)
        assert (info.pairs, info.fitting) == (len(texts), len(fitting))
        assert info.long == len(texts) - len(fitting)
        assert info.source_tokens == sum(len(a.encode()) + 1 for a, _ in fitting)
        assert info.tokens == sum(len(b.encode()) + 1 for _, b in fitting)
        assert info.bytes == sum(len(b.encode()) for _, b in fitting)
        expected = [[len(text.encode()) + 2 for text in pair] for pair in texts]
        assert pairs_set.lengths(split).tolist() == expected
    assert pairs_set.splits["train"].empty == sum(not all(pair) for pair in all_pairs) > 1
    assert pairs_set.splits["test"].empty == 0


@pytest.mark.parametrize("predict_eos", [False, True])
def test_entropy_and_bytes_per_token_are_those_of_valid_tokens(
    pairs_set: PreparedPairs, predict_eos: bool
):
    pairs_set = dataclasses.replace(pairs_set, predict_eos=predict_eos)
    end = [256] * predict_eos
    tokens, size = {}, {}
    for split in SPLITS:
        fitting = [b for a, b in pairs_set.texts(split) if not too_long((a, b), pairs_set.spec)]
        tokens[split] = [i for text in fitting for i in [*f" {text}".encode(), *end]]
        size[split] = sum(len(text.encode()) for text in fitting)
    counts = collections.Counter(tokens["train"])
    total = len(tokens["train"]) + 257
    for split in SPLITS:
        expected = -np.mean([np.log((counts[i] + 1) / total) for i in tokens[split]])
        assert pairs_set.unigram_entropy(split) == pytest.approx(expected, rel=1e-12)
        assert pairs_set.bytes_per_token(split) == size[split] / len(tokens[split])


def test_tfds_opens_the_pairs(pairs_set: PreparedPairs):
    """TFDS's own reader and decoder are the independent truth for ours."""
    rows = tfds.builder_from_directory(pairs_set.folder).as_data_source("validation")
    texts = pairs_set.texts("validation")
    assert len(rows) == len(texts)
    for row, pair in zip(rows, texts, strict=True):
        for name, text in zip(("source", "target"), pair, strict=True):
            assert row[f"{name}_text"].decode() == text
            assert bytes(row[name].astype(np.uint8)) == f" {text}".encode()


def test_given_files_are_the_held_out_splits(
    tmp_path: Path, pair_source: str, all_pairs: list[Pair]
):
    held_out = make_pairs(40, seed=1)
    path = write_pairs(tmp_path / "valid.jsonl", held_out)
    prepared = prepare_pairs(pair_spec(pair_source, validation=path), tmp_path / "set")
    assert prepared.texts("validation") == [pair for pair in held_out if all(pair)]
    assert prepared.splits["validation"].empty == sum(not all(pair) for pair in held_out) > 0
    assert prepared.splits["test"].pairs > 10
    found = collections.Counter(prepared.texts("train") + prepared.texts("test"))
    assert found == collections.Counter(pair for pair in all_pairs if all(pair))


def test_set_is_the_same_for_any_number_of_threads(
    tmp_path: Path, pairs_set: PreparedPairs, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(prepare_module, "CHUNK", 7)
    other = prepare_pairs(pairs_set.spec, tmp_path / "set", workers=3)
    assert other.description() == pairs_set.description()
    for split in SPLITS:
        assert other.texts(split) == pairs_set.texts(split)
        np.testing.assert_array_equal(other.lengths(split), pairs_set.lengths(split))


def test_finished_pairs_are_reused(pairs_set: PreparedPairs, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prepare_module, "_write", None)
    assert prepare_pairs(pairs_set.spec, pairs_set.folder) == pairs_set
    assert open_folder(pairs_set.folder) == pairs_set
    for field, value in {"length": 8, "source": "pairs:embedded", "test": "pairs:a,b"}.items():
        other = dataclasses.replace(pairs_set.spec, **{field: value})
        with pytest.raises(UserError, match=f"was prepared with {field}=.*choose another folder"):
            prepare_pairs(other, pairs_set.folder)


@pytest.mark.parametrize("field", ["source", "validation"])
def test_edited_pairs_are_noticed_and_touched_ones_are_not(tmp_path: Path, field: str):
    found = make_pairs(60)
    paths = {f: tmp_path / f"{f}.jsonl" for f in ("source", "validation")}
    spec = pair_spec(write_pairs(paths["source"], found))
    spec = dataclasses.replace(spec, validation=write_pairs(paths["validation"], found))
    prepared = prepare_pairs(spec, tmp_path / "set")
    os.utime(paths[field], (0, 0))
    assert prepare_pairs(spec, tmp_path / "set") == prepared
    write_pairs(paths[field], [*found[:-1], (found[-1][0], "another")])
    with pytest.raises(UserError, match="has changed since"):
        prepare_pairs(spec, tmp_path / "set")
    paths[field].unlink()
    assert prepare_pairs(spec, tmp_path / "set") == prepared


@pytest.mark.parametrize("error", [RuntimeError("disk"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_failed_preparation(
    tmp_path: Path, pair_source: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(prepare_module, "publish", fail)
    with pytest.raises(type(error)):
        prepare_pairs(pair_spec(pair_source), tmp_path / "set")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"length": 1}, "data.length=1 must be at least 2"),
        ({"source_length": 0}, "data.source_length=0 must be at least 2"),
        ({"length": 2}, "gives no pair to train on that fits data.length=2"),
        ({"tokenizer": "text8"}, "data.tokenizer=text8 cannot end a text inside a row"),
        ({"tokenizer": "gpt9"}, "data.tokenizer='gpt9' is not a tokenizer"),
        ({"test_fraction": 2.0}, "data.test_fraction=2.0"),
        ({"validation_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to train on"),
    ],
)
def test_bad_spec_is_named_and_leaves_nothing(
    tmp_path: Path, pair_source: str, changes: dict, complaint: str
):
    with pytest.raises(UserError, match=complaint):
        prepare_pairs(pair_spec(pair_source, **changes), tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_file_without_a_whole_pair_is_refused(tmp_path: Path):
    path = write_pairs(tmp_path / "a.jsonl", [("", "a"), ("b", " ")])
    with pytest.raises(UserError, match="gives no pair to train on"):
        prepare_pairs(pair_spec(path), tmp_path / "set")


def test_empty_split_is_refused_and_leaves_nothing(tmp_path: Path, pair_source: str):
    for changes, complaint in (
        (
            {"test_fraction": 0.0001},
            r"the test split no pair that fits .*data\.test_fraction=0\.0001",
        ),
        (
            {"validation": write_pairs(tmp_path / "a.jsonl", [("a" * 200, "b")])},
            r"fits .*\(1 do not\)",
        ),
    ):
        with pytest.raises(UserError, match=complaint):
            prepare_pairs(pair_spec(pair_source, **changes), tmp_path / "sets" / "set")
        assert not list((tmp_path / "sets").iterdir())


def test_split_without_a_pair_names_the_remedy(tmp_path: Path, pair_source: str):
    spec = pair_spec(pair_source, validation_fraction=0.0)
    prepared = prepare_pairs(spec, tmp_path / "set")
    assert prepared.texts("validation") == []
    with pytest.raises(UserError, match=r"no pair that fits .*give data\.validation or raise"):
        prepared.records("validation")


def test_run_prepares_pairs_and_opens_their_folder(
    tmp_path: Path, pair_source: str, monkeypatch: pytest.MonkeyPatch
):
    spec = pair_spec(pair_source)
    prepared = open_or_prepare(config(spec, tmp_path, eos="predicted"))
    assert prepared.folder == default_folder(tmp_path, spec)
    assert prepared.folder.name.startswith("pairs_all-bytes-S128-L256-")
    assert (prepared.buckets, prepared.predict_eos) == (3, True)
    monkeypatch.chdir(Path(pair_source.removeprefix("pairs:")).parent)
    relative = dataclasses.replace(spec, source="pairs:all.jsonl")
    given = open_or_prepare(config(relative, tmp_path, buckets=1))
    assert given == dataclasses.replace(prepared, buckets=1, predict_eos=False)
    folder = config(spec, tmp_path, source=str(prepared.folder), eos="predicted")
    assert open_or_prepare(folder) == prepared
    for field, value in {"length": 512, "source_length": 256, "test": "pairs:embedded"}.items():
        other = config(spec, tmp_path, source=str(prepared.folder), **{field: value})
        with pytest.raises(UserError, match=f"data.{field}={value} does not match the data"):
            open_or_prepare(other)


def test_buckets_are_checked_before_anything_is_prepared(tmp_path: Path, pair_source: str):
    spec = pair_spec(pair_source, source_length=126)
    with pytest.raises(UserError, match=r"data\.source_length=126 is not divisible by 4"):
        open_or_prepare(config(spec, tmp_path))
    assert not list(tmp_path.iterdir())


def test_default_folder_depends_on_every_field(tmp_path: Path):
    spec = pair_spec("pairs:/data/a.de,/data/a.en")
    changes = {"source": "pairs:embedded", "validation": "pairs:embedded", "test": "pairs:a,b"}
    changes |= {"tokenizer": "gpt2", "length": 8, "source_length": 8}
    changes |= {"validation_fraction": 0.3, "test_fraction": 0.3}
    others = [dataclasses.replace(spec, **{name: value}) for name, value in changes.items()]
    names = {default_folder(tmp_path, other).name.rsplit("-", 1)[1] for other in [spec, *others]}
    assert len(names) == 1 + len(dataclasses.fields(spec))


def test_spec_comes_back_from_a_description(pairs_set: PreparedPairs, wrapped: PreparedText):
    for one in (pairs_set, wrapped):
        description = json.loads(json.dumps(one.description()))
        assert spec_of(description) == one.spec
        assert f"--source={one.spec.source}" in prepare_command(spec_of(description), one.folder)
