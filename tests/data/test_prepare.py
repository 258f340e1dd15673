"""Preparation of text: blocks, splits, figures, reuse, and what is refused."""

import collections
import dataclasses
import functools
import itertools
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import tensorflow_datasets as tfds
from pyarrow import parquet

from ddm_jax.data.build import text as prepare_module
from ddm_jax.data.build import tfds_builder as builder
from ddm_jax.data.build.tokenise_shards import BeamSpec
from ddm_jax.data.sets.text import PreparedText, open_text
from ddm_jax.data.sources import registry as sources
from ddm_jax.data.splits import SPLITS
from ddm_jax.data.tokenizers import characters
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from tests.data.corpora import make_documents, read_all, small, write_jsonl

prepare_text = functools.partial(prepare_module.prepare_text, progress=False)


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "dataset_info.json"}


def test_every_document_is_in_exactly_one_split(wrapped: PreparedText, documents: list[str]):
    found = []
    for split in SPLITS:
        stream = read_all(wrapped, split)[0].reshape(-1)
        parts = np.split(stream, np.flatnonzero(stream == characters.BYTES_EOS) + 1)
        texts = [wrapped.tokenizer.decode(part) for part in parts]
        # The last one may have been cut with the tail of the stream.
        assert len(texts) - 1 <= wrapped.splits[split].documents <= len(texts)
        assert wrapped.splits[split].documents > 10
        found += texts[:-1]
    assert len(set(found)) == len(found)
    assert set(found) <= set(documents)
    assert sum(info.documents for info in wrapped.splits.values()) == len(documents)


def test_wrapped_blocks_are_the_joined_documents(wrapped: PreparedText, documents: list[str]):
    for split in SPLITS:
        tokens, valid = read_all(wrapped, split)
        assert tokens.dtype == np.int32
        assert valid.all()
        assert valid.shape == tokens.shape == (wrapped.splits[split].blocks, 32)
        stream = tokens.reshape(-1)
        begins = wrapped.tokenizer.decode(stream[: int(np.argmax(stream == 256))])
        # Documents of a split keep their order, so its first document identifies the split.
        members = [d for d in documents if d.encode() + b"\0" in _with_zeros(stream)]
        assert members[0] == begins
        joined = [i for d in members for i in [*d.encode(), 256]]
        assert stream[: len(joined)].tolist() == joined[: len(stream)]
        assert len(stream) - len(joined) < max(len(d.encode()) for d in documents) + 1


def _with_zeros(stream: np.ndarray) -> bytes:
    return b"\0" + np.where(stream == 256, 0, stream).astype(np.uint8).tobytes()


def test_figures_of_wrapped_splits_add_up(wrapped: PreparedText, documents: list[str]):
    infos = wrapped.splits.values()
    total_bytes = sum(len(d.encode()) for d in documents)
    assert sum(info.bytes for info in infos) == total_bytes
    assert sum(i.tokens + i.dropped_tokens for i in infos) == total_bytes + len(documents)
    for info in infos:
        assert info.tokens == info.blocks * 32
        assert info.dropped_tokens < 32
        assert info.bytes_per_token == info.bytes / (info.bytes + info.documents)


def test_padded_blocks_are_the_documents(tmp_path: Path, corpus: str, documents: list[str]):
    prepared = prepare_text(small(corpus, pack="pad", length=200), tmp_path / "set")
    rows = []
    for split, info in prepared.splits.items():
        tokens, valid = read_all(prepared, split)
        lengths = valid.sum(axis=1)
        np.testing.assert_array_equal(valid, np.arange(200) < lengths[:, None])
        assert info.tokens == lengths.sum()
        assert info.blocks == info.documents == len(tokens)
        kept = [bytes(row[:n][row[:n] < 256].tolist()) for row, n in zip(tokens, lengths)]  # noqa: B905
        # The tokenizer's text of a document cut inside a character is not counted byte for byte.
        np.testing.assert_allclose(
            info.bytes_per_token, sum(map(len, kept)) / lengths.sum(), rtol=2e-3
        )
        rows += [tuple(row[:n].tolist()) for row, n in zip(tokens, lengths)]  # noqa: B905
    expected = [tuple([*d.encode(), 256][:200]) for d in documents]
    assert any(len(d.encode()) > 200 for d in documents)
    assert collections.Counter(rows) == collections.Counter(expected)
    dropped = sum(max(0, len(d.encode()) + 1 - 200) for d in documents)
    assert sum(info.dropped_tokens for info in prepared.splits.values()) == dropped


@pytest.mark.parametrize("pack", ["wrap", "pad"])
def test_unigram_entropy_is_that_of_the_tokens(tmp_path: Path, corpus: str, pack: str):
    prepared = prepare_text(small(corpus, pack=pack), tmp_path / "set")
    real = {s: tokens[valid].tolist() for s in SPLITS for tokens, valid in [read_all(prepared, s)]}
    counts = collections.Counter(real["train"])
    total = len(real["train"]) + prepared.tokenizer.vocab_size
    expected = -np.mean([np.log((counts[i] + 1) / total) for i in real["validation"]])
    assert prepared.unigram_entropy("validation") == pytest.approx(expected, rel=1e-12)


def test_equal_documents_fall_in_one_split(tmp_path: Path):
    documents = make_documents(40)
    path = write_jsonl(tmp_path / "a.jsonl", documents * 3)
    prepared = prepare_text(small(f"jsonl:{path}", pack="pad", length=600), tmp_path / "set")
    rows = {s: {row.tobytes() for row in read_all(prepared, s)[0]} for s in SPLITS}
    for a, b in itertools.combinations(SPLITS, 2):
        assert not rows[a] & rows[b]
    assert sum(len(r) for r in rows.values()) == 40
    assert sum(info.documents for info in prepared.splits.values()) == 120


def test_tokenizer_is_trained_only_on_the_train_split(
    tmp_path: Path, corpus: str, monkeypatch: pytest.MonkeyPatch
):
    seen: list[str] = []

    def spy(spec: str, documents: object) -> Tokenizer:
        seen.extend(documents())
        return tokenizers.pretrained_tokenizer("bytes")

    monkeypatch.setattr(tokenizers, "make", spy)
    prepared = prepare_text(small(corpus, pack="pad", length=600), tmp_path / "set")
    tokens, valid = read_all(prepared, "train")
    assert [prepared.tokenizer.decode(t[v]) for t, v in zip(tokens, valid, strict=True)] == seen


def test_set_is_the_same_for_any_number_of_workers_and_shards(
    tmp_path: Path, corpus: str, wrapped: PreparedText, monkeypatch: pytest.MonkeyPatch
):
    one = prepare_text(wrapped.spec, tmp_path / "one", workers=1)
    monkeypatch.setattr("ddm_jax.data.sources.shards.SHARD_BYTES", (1000, 1000))
    assert len(sources.open_source(corpus).shards["train"]) > 10
    many = prepare_text(wrapped.spec, tmp_path / "many", workers=4)
    assert files(one.folder) == files(many.folder) == files(wrapped.folder)


@pytest.mark.parametrize("pack", ["wrap", "pad"])
def test_set_is_the_same_for_any_size_of_chunks(
    tmp_path: Path, corpus: str, pack: str, monkeypatch: pytest.MonkeyPatch
):
    one = prepare_text(small(corpus, pack=pack), tmp_path / "one")
    monkeypatch.setattr("ddm_jax.data.build.tokenise_shards.CHUNK_CHARS", 300)
    monkeypatch.setattr(builder, "READ_BLOCKS", 7)
    monkeypatch.setattr(builder, "WRITE_RECORDS", 100)
    many = prepare_text(small(corpus, pack=pack), tmp_path / "many")
    assert files(one.folder) == files(many.folder)


def test_records_in_several_files_are_read_in_order(
    tmp_path: Path, wrapped: PreparedText, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(builder, "FILE_BYTES", 100 * 32 * 2)  # 100 blocks of 32 ids of 2 bytes
    cut = prepare_text(wrapped.spec, tmp_path / "set")
    assert len(list(cut.folder.glob("*train*"))) > 5
    for split in SPLITS:
        np.testing.assert_array_equal(read_all(cut, split)[0], read_all(wrapped, split)[0])


@pytest.mark.parametrize("pack", ["wrap", "pad"])
def test_beam_prepares_the_same_set(
    tmp_path: Path, corpus: str, pack: str, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("apache_beam", reason="the extra `beam` is not installed")
    monkeypatch.setattr("ddm_jax.data.sources.shards.SHARD_BYTES", (5000, 5000))
    spec = small(corpus, pack=pack)
    here = prepare_text(spec, tmp_path / "here")
    beam = prepare_text(spec, tmp_path / "beam", beam=BeamSpec())
    assert beam.description() == here.description()
    for split in SPLITS:
        for a, b in zip(read_all(here, split), read_all(beam, split), strict=True):
            np.testing.assert_array_equal(a, b)


def test_tfds_opens_the_set(wrapped: PreparedText):
    """TFDS's own reader and decoder are the independent truth for ours."""
    rows = tfds.builder_from_directory(wrapped.folder).as_data_source("validation")
    tokens, valid = read_all(wrapped, "validation")
    assert len(rows) == len(tokens)
    for row, ours, real in zip(rows, tokens, valid, strict=True):
        np.testing.assert_array_equal(row["tokens"], ours)
        assert row["length"] == real.sum()


def test_ids_above_16_bits_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: str):
    codec = tokenizers.Codec(
        lambda text: characters.encode_bytes(text) + 70_000,
        lambda ids: characters.decode_bytes(ids - 70_000),
    )
    monkeypatch.setitem(tokenizers.CODECS, "wide", lambda _: codec)
    wide = Tokenizer("bytes", "wide", 70_257, 70_256, b"")
    monkeypatch.setattr(tokenizers, "make", lambda *_: wide)
    prepared = prepare_text(small(corpus), tmp_path / "set")
    assert prepared.records("train").dtype == "int32"
    tokens, _ = read_all(prepared, "train")
    assert tokens.min() >= 70_000
    assert tokens.max() == 70_256


def test_progress_of_a_file_that_is_compressed_inside_ends_at_its_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [f"{i} " * 500 for i in range(100)]}), path)
    size = path.stat().st_size
    assert size < 5e4  # of 150 kB of text
    prepare_module.prepare_text(small(f"parquet:{path}"), tmp_path / "set", workers=1)
    said = re.findall(r"tokenise  ([\d.]+)kB/", capsys.readouterr().err)
    assert max(map(float, said)) == float(said[-1]) == pytest.approx(size / 1000, rel=0.01)


@pytest.mark.parametrize("error", [RuntimeError("disk"), KeyboardInterrupt()])
def test_nothing_is_left_of_a_failed_preparation(
    tmp_path: Path, corpus: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
):
    (tmp_path / "mine.txt").write_text("keep")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(prepare_module, "publish", fail)
    with pytest.raises(type(error)):
        prepare_text(small(corpus), tmp_path / "set")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_half_written_set_is_not_taken_for_a_finished_one(tmp_path: Path, wrapped: PreparedText):
    for name, content in files(wrapped.folder).items():
        if name != "ddm_jax.json":
            (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="not a prepared set"):
        open_text(tmp_path)
    before = files(tmp_path)
    with pytest.raises(UserError, match="exists and is not a finished set"):
        prepare_text(wrapped.spec, tmp_path)
    assert files(tmp_path) == before


def test_finished_set_is_reused(wrapped: PreparedText, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(builder, "build", None)
    assert prepare_text(wrapped.spec, wrapped.folder) == wrapped


def test_finished_set_of_another_spec_is_not_reused(wrapped: PreparedText):
    other = dataclasses.replace(wrapped.spec, length=16)
    with pytest.raises(UserError, match="prepared with length=32, not 16"):
        prepare_text(other, wrapped.folder)


def test_race_ends_with_the_copy_that_came_first(
    tmp_path: Path, corpus: str, monkeypatch: pytest.MonkeyPatch
):
    spec, out = small(corpus), tmp_path / "set"
    build = builder.build

    def slow(*args: object, **kwargs: object) -> Path:
        monkeypatch.setattr(builder, "build", build)
        prepare_text(spec, out)
        return build(*args, **kwargs)

    monkeypatch.setattr(builder, "build", slow)
    assert prepare_text(spec, out) == open_text(out)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_edited_text_is_noticed_and_touched_text_is_not(tmp_path: Path):
    documents = make_documents(50)
    path = write_jsonl(tmp_path / "a.jsonl", documents)
    spec = small(f"jsonl:{path}")
    prepared = prepare_text(spec, tmp_path / "set")
    os.utime(path, (0, 0))
    assert prepare_text(spec, tmp_path / "set") == prepared
    write_jsonl(path, [*documents[:-1], documents[-1][::-1]])
    with pytest.raises(UserError, match="has changed since"):
        prepare_text(spec, tmp_path / "set")
    path.unlink()
    assert prepare_text(spec, tmp_path / "set") == prepared


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"pack": "fold"}, "data.pack='fold' must be one of wrap, pad"),
        ({"length": 0}, "data.length=0 must be at least 1"),
        ({"length": 10**6}, "fewer than one block of data.length=1000000"),
        ({"tokenizer": "gpt9"}, "data.tokenizer='gpt9' is not a tokenizer"),
        ({"test_fraction": 2.0}, "data.test_fraction=2.0"),
        ({"tokenizer": "sentencepiece:30"}, "cannot be trained"),
    ],
)
def test_bad_spec_is_named_and_leaves_nothing(
    tmp_path: Path, corpus: str, changes: dict, complaint: str
):
    with pytest.raises(UserError, match=complaint):
        prepare_text(small(corpus, **changes), tmp_path / "set")
    assert not list(tmp_path.iterdir())


def test_set_of_an_earlier_version_opens(tmp_path: Path, wrapped: PreparedText):
    """Its spec has no named splits."""
    shutil.copytree(wrapped.folder, tmp_path / "set")
    record = json.loads((tmp_path / "set" / "ddm_jax.json").read_text())
    assert record["spec"].pop("validation") == record["spec"].pop("test") == ""
    (tmp_path / "set" / "ddm_jax.json").write_text(json.dumps(record))
    opened = dataclasses.replace(wrapped, folder=tmp_path / "set")
    assert prepare_text(wrapped.spec, tmp_path / "set") == opened


def test_damaged_record_is_named(tmp_path: Path, wrapped: PreparedText):
    (tmp_path / "ddm_jax.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(UserError, match="damaged"):
        open_text(tmp_path)
    (tmp_path / "ddm_jax.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(UserError, match="has format 99"):
        open_text(tmp_path)


def test_folder_that_cannot_be_made_is_named(tmp_path: Path, corpus: str):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/set cannot be made .*choose another data\.root"):
        prepare_text(small(corpus), tmp_path / "file" / "set")


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"datasets: pip install .*\[hf\]'"):
        prepare_text(small("hf:owner/name"), tmp_path / "set")
