"""Held-out splits: those of the source, those that are named, and empty ones."""

import dataclasses
import functools
import json
import re
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import tensorflow_datasets as tfds
from pyarrow import parquet

from ddm_jax.config import Config, DataConfig
from ddm_jax.data.build import text as prepare_module
from ddm_jax.data.sets.text import PreparedText, open_text
from ddm_jax.data.sources import registry as sources
from ddm_jax.data.splits import SPLITS
from ddm_jax.errors import UserError
from ddm_jax.evaluation.likelihood.corpora import own_split
from tests.data.corpora import make_documents, read_all, small, write_jsonl

prepare_text = functools.partial(prepare_module.prepare_text, progress=False)


def test_splits_of_the_source_are_kept(tmp_path: Path):
    folder = tmp_path / "corpus"
    train, validation = make_documents(200, seed=1), make_documents(20, seed=2)
    build_tfds(folder, {"train": train, "validation": validation})
    spec = small(f"tfds:{folder}", pack="pad", length=600)
    prepared = prepare_text(spec, tmp_path / "set")
    texts = {split: texts_of(prepared, split) for split in SPLITS}
    assert texts["validation"] == set(validation)
    assert texts["test"]
    assert texts["train"] | texts["test"] == set(train)
    assert not texts["train"] & texts["test"]


def test_split_of_the_source_gives_way_to_a_named_one(tmp_path: Path):
    train, own = make_documents(100, seed=1), make_documents(20, seed=2)
    build_tfds(tmp_path / "corpus", {"train": train, "validation": own})
    named = write_jsonl(tmp_path / "named.jsonl", make_documents(30, seed=3))
    spec = small(f"tfds:{tmp_path}/corpus", pack="pad", length=600, validation=f"jsonl:{named}")
    prepared = prepare_text(spec, tmp_path / "set")
    assert texts_of(prepared, "validation") == set(make_documents(30, seed=3))
    # and of a named source with such a split, this is the one that is taken
    turned = small(f"jsonl:{named}", pack="pad", length=600, validation=f"tfds:{tmp_path}/corpus")
    prepared = prepare_text(turned, tmp_path / "turned")
    assert texts_of(prepared, "validation") == set(own)


def test_hugging_face_splits_are_kept(tmp_path: Path):
    pytest.importorskip("datasets", reason="the extra `hf` is not installed")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    train, validation = make_documents(200, seed=1), make_documents(20, seed=2)
    write_jsonl(corpus / "train.jsonl", train)
    write_jsonl(corpus / "validation.jsonl", validation)
    prepared = prepare_text(small(f"hf:{corpus}", pack="pad", length=600), tmp_path / "set")
    assert texts_of(prepared, "validation") == set(validation)
    assert texts_of(prepared, "train") | texts_of(prepared, "test") == set(train)
    assert prepared.splits["test"].documents


def test_hugging_face_column_is_the_one_that_is_named(tmp_path: Path):
    pytest.importorskip("datasets", reason="the extra `hf` is not installed")
    rows = [{"text": "no", "body": text} for text in make_documents(60)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = sources.open_source(f"hf:{tmp_path}#body")
    assert [text for s in source.shards["train"] for text in s.read()] == make_documents(60)
    with pytest.raises(UserError, match=r'has no string "other" .*name a column as in hf:NAME#COL'):
        list(sources.open_source(f"hf:{tmp_path}#other").shards["train"][0].read())


def test_tfds_feature_is_the_one_that_is_named(tmp_path: Path):
    build_tfds(tmp_path / "set", {"train": ["a", "b"], "test": ["c"]})
    source = sources.open_source(f"tfds:{tmp_path}/set#text")
    assert sorted(text for s in source.shards["train"] for text in s.read()) == ["a", "b"]
    with pytest.raises(UserError, match=r'no string feature "id" \(it has text\): name one as in'):
        sources.open_source(f"tfds:{tmp_path}/set#id")


def test_named_source_without_the_split_is_named(tmp_path: Path):
    build_tfds(tmp_path / "set", {"test": ["c"]})
    with pytest.raises(UserError, match=r"set has no validation or train split \(it has test\)"):
        sources.open_source("embedded", {"validation": f"tfds:{tmp_path}/set"})
    with pytest.raises(UserError, match=r"data\.source=tfds:.*set has no train split"):
        sources.open_source(f"tfds:{tmp_path}/set")


@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "tsv", "parquet", "embedded"])
def test_named_sources_are_the_held_out_splits(tmp_path: Path, kind: str):
    names = {"train": 60, "validation": 20, "test": 10}
    texts = {s: [f"{s} {i}" for i in range(count)] for s, count in names.items()}
    texts["test"].append(texts["train"][0])  # nothing is removed from either
    for split, documents in texts.items():
        write_documents(kind, tmp_path, split, documents)
    named = {split: f"{kind}:{tmp_path}/{split}*" for split in names}
    if kind == "embedded":
        named = {"train": f"jsonl:{tmp_path}/train*", "validation": "embedded", "test": "embedded"}
    held_out = {split: named[split] for split in ("validation", "test")}
    spec = small(named["train"], pack="pad", length=99, **held_out)
    prepared = prepare_text(spec, tmp_path / "set")
    if kind == "embedded":
        assert [prepared.splits[split].documents for split in SPLITS] == [60, 249, 249]
        return
    assert {split: texts_of(prepared, split) for split in SPLITS} == {
        split: set(documents) for split, documents in texts.items()
    }
    assert open_text(prepared.folder) == prepare_text(spec, prepared.folder) == prepared
    # an evaluation reports where the text of its split is from
    data = DataConfig(str(prepared.folder), tokenizer="", length=99, pack="pad", **held_out)
    config = dataclasses.replace(Config(), data=data)
    reported = {s: own_split(config, prepared.tokenizer, s, count=1).name for s in SPLITS}
    assert reported == {"train": data.source, **held_out}


def write_documents(kind: str, folder: Path, split: str, documents: list[str]) -> None:
    """Writes the files SPLIT*, each of which begins with a column or field "text"."""
    if kind == "text":
        for number, document in enumerate(documents):
            (folder / f"{split}{number:03}.txt").write_text(document)
    elif kind == "parquet":
        parquet.write_table(pyarrow.table({"text": documents}), folder / f"{split}.parquet")
    elif kind in ("csv", "tsv"):
        (folder / f"{split}.{kind}").write_text("\n".join(["text", *documents]))
    else:
        write_jsonl(folder / f"{split}.jsonl", documents)


def test_edited_held_out_text_is_noticed(tmp_path: Path, corpus: str):
    path = write_jsonl(tmp_path / "v.jsonl", make_documents(30))
    spec = small(corpus, validation=f"jsonl:{path}")
    prepare_text(spec, tmp_path / "set")
    write_jsonl(path, make_documents(31))
    with pytest.raises(UserError, match="has changed since"):
        prepare_text(spec, tmp_path / "set")


EMPTY = {
    "fraction without a block": (
        {"validation_fraction": 0.001},
        "the validation split 13 tokens, fewer than one block of data.length=32: raise "
        "data.validation_fraction=0.001 (0: no such split), name a source with "
        "data.validation=..., lower data.length, or add text.",
    ),
    "test split": ({"test_fraction": 0.001}, "gives the test split 0 tokens"),
    "named text without a block": (
        {"test": "text:{}/short"},
        "data.test=text:{}/short gives 6 tokens, fewer than one block of data.length=32: lower "
        "data.length, or add text to it.",
    ),
    "named text of empty documents": ({"validation": "jsonl:{}/none"}, "gives 0 tokens"),
    "a fraction of 0, but a name": (
        {"test": "text:{}/short", "test_fraction": 0.0},
        "data.test=text:{}/short gives 6 tokens",
    ),
    "named pairs": ({"test": "pairs:embedded"}, "data.test='pairs:embedded' is not a source"),
    "named set that is not there": ({"test": "text:{}/no"}, "data.test=text:{}/no matches no file"),
}


@pytest.mark.parametrize("case", EMPTY)
def test_empty_split_is_refused_and_leaves_nothing(tmp_path: Path, corpus: str, case: str):
    (tmp_path / "short").write_text("short")
    write_jsonl(tmp_path / "none", [""])
    changes, complaint = EMPTY[case]
    changes = {n: v.format(tmp_path) if isinstance(v, str) else v for n, v in changes.items()}
    with pytest.raises(UserError, match=re.escape(complaint.format(tmp_path))) as error:
        prepare_text(small(corpus, **changes), tmp_path / "sets" / "set")
    assert len(str(error.value)) < 400
    assert not (tmp_path / "sets").exists() or not list((tmp_path / "sets").iterdir())


def test_split_with_a_fraction_of_0_may_be_empty(tmp_path: Path, corpus: str):
    spec = small(corpus, validation_fraction=0.0, test_fraction=0.0)
    prepared = prepare_text(spec, tmp_path / "set")
    assert [prepared.splits[split].documents for split in SPLITS] == [300, 0, 0]


def texts_of(prepared: PreparedText, split: str) -> set[str]:
    """The documents of a padded split, none of which was cut."""
    rows = zip(*read_all(prepared, split), strict=True)
    return {prepared.tokenizer.decode(tokens[valid]) for tokens, valid in rows}


def build_tfds(folder: Path, splits: dict[str, list[str]]) -> None:
    class Texts(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        code_path = None

        def _info(self) -> tfds.core.DatasetInfo:
            features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "id": np.int32})
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, dl_manager: object) -> dict:
            return {name: self._generate_examples(texts) for name, texts in splits.items()}

        def _generate_examples(self, texts: list[str]):
            yield from ((i, {"text": text, "id": i}) for i, text in enumerate(texts))

    made = Texts(data_dir=str(folder / "root"))
    made.download_and_prepare(file_format="array_record")
    for path in Path(made.data_dir).iterdir():
        path.rename(folder / path.name)
