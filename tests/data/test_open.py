"""The config section `data` opens the prepared set it asks for, or prepares it."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import pytest

from ddm_jax.config import DataConfig
from ddm_jax.data.build import text as prepare_module
from ddm_jax.data.open import open_or_prepare, prepare_command
from ddm_jax.data.sets.kinds import default_folder
from ddm_jax.data.sets.text import PreparedText, TextSpec
from ddm_jax.errors import UserError
from tests.data.corpora import make_documents, small, write_jsonl

prepare_text = functools.partial(prepare_module.prepare_text, progress=False)


def config(spec: TextSpec, root: Path, **changes: Any) -> DataConfig:
    return DataConfig(**{**dataclasses.asdict(spec), "root": str(root), **changes})


def test_relative_and_absolute_globs_are_the_same_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_jsonl(tmp_path / "a.jsonl", make_documents(50))
    absolute, relative = small(f"jsonl:{tmp_path}/*.jsonl"), small("jsonl:*.jsonl")
    prepared = open_or_prepare(config(absolute, tmp_path / "root"))
    monkeypatch.chdir(tmp_path)
    assert open_or_prepare(config(relative, tmp_path / "root")) == prepared


def test_default_folder_depends_on_every_field(tmp_path: Path):
    spec = TextSpec(source="jsonl:/data/a b.jsonl", tokenizer="sentencepiece:2048", length=256)
    folder = default_folder(tmp_path, spec)
    assert folder.parent == tmp_path
    assert folder.name.startswith("jsonl_ab-sentencepiece_2048-L256-wrap-")
    changes = {"source": "embedded", "tokenizer": "gpt2", "length": 8, "pack": "pad"}
    changes |= {"validation_fraction": 0.3, "test_fraction": 0.3}
    changes |= {"validation": "embedded", "test": "embedded"}
    others = [dataclasses.replace(spec, **{name: value}) for name, value in changes.items()]
    names = {default_folder(tmp_path, other).name.rsplit("-", 1)[1] for other in [spec, *others]}
    assert len(names) == 1 + len(dataclasses.fields(spec))


def test_default_folder_without_named_splits_is_that_of_earlier_versions(tmp_path: Path):
    spec = TextSpec(source="jsonl:/data/a b.jsonl", tokenizer="sentencepiece:2048", length=256)
    # as version 0.2.0 named it
    assert default_folder(tmp_path, spec).name == "jsonl_ab-sentencepiece_2048-L256-wrap-f54aea15"


def test_local_source_is_prepared_when_a_run_asks_for_it(tmp_path: Path, corpus: str):
    spec = small(corpus)
    prepared = open_or_prepare(config(spec, tmp_path))
    assert prepared.folder == default_folder(tmp_path, spec)
    assert open_or_prepare(config(spec, tmp_path)) == prepared


@pytest.mark.parametrize(
    "named",
    [
        {"source": "tfds:lm1b"},
        {"source": "hf:owner/name:config"},
        {"source": "embedded", "validation": "hf:owner/name"},
    ],
)
def test_source_that_must_be_downloaded_names_the_command(tmp_path: Path, named: dict):
    spec = small(**named)
    expected = prepare_command(spec, default_folder(tmp_path, spec))
    assert all(f"--{field}={source}" in expected for field, source in named.items())
    with pytest.raises(UserError) as error:
        open_or_prepare(config(spec, tmp_path))
    assert expected in str(error.value)
    assert not list(tmp_path.iterdir())


def test_prepared_folder_is_opened_as_it_is(wrapped: PreparedText, tmp_path: Path):
    folder = str(wrapped.folder)
    same = config(wrapped.spec, tmp_path, source=folder)
    assert open_or_prepare(same) == wrapped
    anything = config(wrapped.spec, tmp_path, source=folder, tokenizer="", length=0, pack="")
    assert open_or_prepare(anything) == wrapped


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("tokenizer", "gpt2", "data.tokenizer=gpt2 does not match the data.*bytes"),
        ("tokenizer", "sentencepiece:2048", "data.tokenizer=.* does not match the data"),
        ("length", 64, "data.length=64 does not match the data.*length=32"),
        ("pack", "pad", "data.pack=pad does not match the data.*pack=wrap"),
        ("test", "embedded", "data.test=embedded does not match the data.*test=;"),
    ],
)
def test_prepared_folder_unlike_the_config_is_refused(
    wrapped: PreparedText, tmp_path: Path, field: str, value: object, complaint: str
):
    asked = {"source": str(wrapped.folder), field: value}
    with pytest.raises(UserError, match=complaint):
        open_or_prepare(config(wrapped.spec, tmp_path, **asked))
