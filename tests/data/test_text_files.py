import json
from pathlib import Path

import pytest

from ddm_jax.data.sources import registry as sources
from ddm_jax.data.sources import text_files
from ddm_jax.errors import UserError
from tests.data.corpora import make_documents, write_jsonl


def read(spec: str) -> list[str]:
    return [text for shard in sources.open_source(spec).shards["train"] for text in shard.read()]


@pytest.fixture(params=[1, 7, 100, 2**20])
def shard_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(text_files, "SHARD_BYTES", (request.param, request.param))
    return request.param


def test_embedded_corpus_has_all_its_messages_in_order():
    texts = read("embedded")
    assert len(texts) == 249
    assert sum(len(text.encode()) for text in texts) == 12_185_751
    assert texts[0].startswith("Fellow-Citizens of the Senate and House")


def test_jsonl_gives_every_line_once_in_order_for_any_shard_size(tmp_path: Path, shard_bytes: int):
    documents = make_documents(20)
    write_jsonl(tmp_path / "a.jsonl", documents[:12])
    write_jsonl(tmp_path / "b.jsonl", documents[12:])
    assert read(f"jsonl:{tmp_path}/*.jsonl") == documents


def test_jsonl_shards_cut_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_files, "SHARD_BYTES", (100, 100))
    path = write_jsonl(tmp_path / "a.jsonl", make_documents(20))
    shards = sources.open_source(f"jsonl:{path}").shards["train"]
    assert len(shards) == -(-path.stat().st_size // 100)
    assert sum(shard.size for shard in shards) == path.stat().st_size


def test_text_gives_one_document_a_file(tmp_path: Path, shard_bytes: int):
    documents = make_documents(9)
    for number, text in enumerate(documents):
        (tmp_path / f"{number}.txt").write_text(text, newline="")
    assert read(f"text:{tmp_path}/*.txt") == documents


@pytest.mark.parametrize("end", ["", "\r\n\n\n", "no line end", "x" * 200_000, "words " * 40_000])
@pytest.mark.parametrize("shard_bytes", [300, 2**16, 2**20], indirect=True)
def test_sections_of_a_single_file_join_to_its_text(tmp_path: Path, end: str, shard_bytes: int):
    whole = "".join(f"{line}\n\n" for line in make_documents(300)) + end
    path = tmp_path / "one.txt"
    path.write_text(whole, newline="")
    assert "".join(read(f"text:{path}")) == whole


def test_sections_end_at_blank_lines(tmp_path: Path):
    path = tmp_path / "one.txt"
    path.write_text("".join(f"{line}\n\n" for line in make_documents(300)))
    sections = read(f"text:{path}")
    assert len(sections) > 3
    assert all(section.endswith("\n\n") for section in sections if section)
    assert all(len(s) < text_files.SECTION_CHARS + 1000 for s in sections)


def test_long_lines_are_cut_at_spaces(tmp_path: Path):
    path = tmp_path / "one.txt"
    path.write_text("words " * 40_000)
    sections = read(f"text:{path}")
    assert all(section.endswith("words ") for section in sections if section)
    assert max(map(len, sections)) <= 5 * text_files.SECTION_CHARS


@pytest.mark.parametrize("spec", ["", "embeded", "embedded:x", "text:", "ftp:x", "/no/such/folder"])
def test_unknown_source_names_the_allowed_ones(spec: str):
    with pytest.raises(UserError, match=r"data\.source=.*embedded, text:GLOB.*prepared set"):
        sources.open_source(spec)


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_glob_without_match_is_named(tmp_path: Path, kind: str):
    with pytest.raises(UserError, match=rf"data\.source={kind}:.*none\* matches no file"):
        sources.open_source(f"{kind}:{tmp_path}/none*")


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_empty_file_is_named(tmp_path: Path, kind: str):
    (tmp_path / "a").write_text('{"text": "x"}')
    (tmp_path / "b").touch()
    with pytest.raises(UserError, match=rf"{tmp_path}/b is empty"):
        sources.open_source(f"{kind}:{tmp_path}/*")


@pytest.mark.parametrize("files", [1, 2])
def test_text_that_is_not_utf8_is_named_with_its_byte(tmp_path: Path, files: int):
    (tmp_path / "a.txt").write_bytes("é\nab".encode() + b"\xffcd\n")
    if files == 2:
        (tmp_path / "b.txt").write_text("fine")
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8 at byte 5 \(0xff\)"):
        read(f"text:{tmp_path}/*.txt")


def test_jsonl_that_is_not_utf8_is_named_with_its_byte(tmp_path: Path):
    good = b'{"text": "good"}\n'
    (tmp_path / "a.jsonl").write_bytes(good + b'{"text": "\xe9"}\n')
    with pytest.raises(UserError, match=rf"not UTF-8 at byte {len(good) + 10} \(0xe9\)"):
        read(f"jsonl:{tmp_path}/a.jsonl")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{text: 1}", "is not JSON"),
        ('{"text": "cut', "is not JSON"),
        ('{"body": "x"}', r"no string field \"text\" \(it has \['body'\]\)"),
        ('{"text": 3}', 'no string field "text"'),
        ('["text"]', r'no string field "text" \(it has list\)'),
        (json.dumps({"text": "\ud800"}), "half of a surrogate pair"),
    ],
)
def test_bad_jsonl_line_is_named(tmp_path: Path, line: str, complaint: str, shard_bytes: int):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "one"}}\n\n{line}\n')
    with pytest.raises(UserError, match=rf"a\.jsonl:3 .*{complaint}"):
        read(f"jsonl:{path}")
