import csv
import functools
import gzip
import json
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from ddm_jax.data.sources import readers, shards
from ddm_jax.data.sources import registry as sources
from ddm_jax.errors import UserError
from tests.data.corpora import make_documents, write_jsonl


def read(spec: str) -> list[str]:
    return [text for shard in sources.open_source(spec).shards["train"] for text in shard.read()]


@pytest.fixture(params=[1, 7, 100, 2**20])
def shard_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(shards, "SHARD_BYTES", (request.param, request.param))
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
    monkeypatch.setattr(shards, "SHARD_BYTES", (100, 100))
    path = write_jsonl(tmp_path / "a.jsonl", make_documents(20))
    found = sources.open_source(f"jsonl:{path}").shards["train"]
    assert len(found) == -(-path.stat().st_size // 100)
    assert sum(shard.size for shard in found) == path.stat().st_size


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
    assert "".join(read(f"text:{path}")) == whole.replace("\r\n", "\n")


def test_sections_end_at_blank_lines(tmp_path: Path):
    path = tmp_path / "one.txt"
    path.write_text("".join(f"{line}\n\n" for line in make_documents(300)))
    sections = read(f"text:{path}")
    assert len(sections) > 3
    assert all(section.endswith("\n\n") for section in sections if section)
    assert all(len(s) < readers.SECTION_CHARS + 1000 for s in sections)


def test_long_lines_are_cut_at_spaces(tmp_path: Path):
    path = tmp_path / "one.txt"
    path.write_text("words " * 40_000)
    sections = read(f"text:{path}")
    assert all(section.endswith("words ") for section in sections if section)
    assert max(map(len, sections)) <= 5 * readers.SECTION_CHARS


@pytest.mark.parametrize("spec", ["", "embeded", "embedded:x", "text:", "ftp:x", "/no/such/folder"])
def test_unknown_source_names_the_allowed_ones(spec: str):
    with pytest.raises(UserError, match=r"data\.source=.*embedded, text:GLOB.*prepared set"):
        sources.open_source(spec)


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_glob_without_match_is_named(tmp_path: Path, kind: str):
    with pytest.raises(UserError, match=rf"data\.source={kind}:.*none\* matches no file"):
        sources.open_source(f"{kind}:{tmp_path}/none*")


def test_path_of_a_file_need_not_be_a_glob(tmp_path: Path):
    (tmp_path / "a[1].txt").write_text("hello")
    assert read(f"text:{tmp_path}/a[1].txt") == ["hello"]


@pytest.mark.parametrize("kind", ["text", "jsonl"])
def test_empty_files_are_skipped(tmp_path: Path, kind: str):
    (tmp_path / "b").touch()
    with pytest.raises(UserError, match=rf"{tmp_path}/b is empty"):
        sources.open_source(f"{kind}:{tmp_path}/*")
    (tmp_path / "a").write_text('{"text": "x"}')
    assert len(read(f"{kind}:{tmp_path}/*")) == 1
    assert sources.paths(f"{kind}:{tmp_path}/*") == [tmp_path / "a"]


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
        ('{"text": "a", "n": ' + "1" * 5000 + "}", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        (
            '{"id": "1", "n": 2, "body": "x"}',
            r'no string field "text" \(its string fields: body, id\)',
        ),
        ('{"text": 3}', r'no string field "text" \(its string fields: none\)'),
        ('["text"]', r'no string field "text" \(it is a list\)'),
        (json.dumps({"text": "\ud800"}), "half of a surrogate pair"),
    ],
)
def test_bad_jsonl_line_is_named(tmp_path: Path, line: str, complaint: str, shard_bytes: int):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"text": "one"}}\n\n{line}\n')
    with pytest.raises(UserError, match=rf"a\.jsonl:3 .*{complaint}"):
        read(f"jsonl:{path}")


# documents that every format can hold, and some that only text with quotes can
PLAIN = ['"To be", he said', 'or "not" to be,', "日本 🎈", "x" * 200_000]
BROKEN = ["two\nlines", "a\ttab", ' "quoted", so\nto say']


def write_table(path: Path, documents: list[str], field: str, **style: object) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, **style)
        writer.writerows([["id", field], *([i, text] for i, text in enumerate(documents))])


def write_as(kind: str, path: Path, documents: list[str], field: str) -> None:
    if kind == "jsonl":
        rows = [json.dumps({"id": i, field: text}) for i, text in enumerate(documents)]
        path.write_text("\n".join(rows))
    elif kind == "csv":
        write_table(path, documents, field)
    elif kind == "tsv":
        write_table(path, documents, field, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
    else:
        columns = {"id": list(range(len(documents))), field: documents}
        parquet.write_table(pyarrow.table(columns), path, row_group_size=2)


def compress(path: Path, suffix: str) -> None:
    """Two frames, as parallel compressors write them."""
    pack = (
        gzip.compress
        if suffix == ".gz"
        else functools.partial(pyarrow.compress, codec="zstd", asbytes=True)
    )
    content = path.read_bytes()
    half = len(content) // 2
    Path(f"{path}{suffix}").write_bytes(pack(content[:half]) + pack(content[half:]))
    path.unlink()


@pytest.mark.parametrize("field", ["text", "content"])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "tsv", "parquet"])
def test_formats_give_the_field_of_every_record(tmp_path: Path, kind: str, suffix: str, field: str):
    first, second = PLAIN[:2], [*PLAIN[2:], *(BROKEN if kind != "tsv" else [])]
    for name, documents in (("a", first), ("b", second)):
        path = tmp_path / f"{name}.{kind}"
        write_as(kind, path, documents, field)
        if suffix and kind != "parquet":  # which is compressed inside
            compress(path, suffix)
    name = "" if field == "text" else f"#{field}"
    assert read(f"{kind}:{tmp_path}/*.{kind}*{name}") == first + second


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("kind", ["text", "jsonl", "csv", "tsv"])
def test_byte_order_mark_and_windows_line_ends_are_not_text(tmp_path: Path, kind: str, suffix: str):
    content = {
        "text": "one\r\ntwo\rthree\r\n",
        "jsonl": '{"text": "one"}\r\n\r\n{"text": "t\\r\\nwo"}\r\n',
        "csv": "id,text\r\n1,one\r\n2,two\r\n",
        "tsv": "text\tid\r\none\t1\r\n",
    }
    expected = {
        "text": ["one\ntwo\nthree\n"],
        "jsonl": ["one", "t\r\nwo"],
        "csv": ["one", "two"],
        "tsv": ["one"],
    }
    path = tmp_path / "a"
    path.write_bytes(b"\xef\xbb\xbf" + content[kind].encode())
    if suffix:
        compress(path, suffix)
    assert read(f"{kind}:{path}{suffix}") == expected[kind]


@pytest.mark.parametrize("cut", [1, 2**16, 3 * 2**15])
def test_characters_and_line_ends_across_pieces_are_kept(tmp_path: Path, cut: int):
    """A line is read in pieces of 64 kB, which end anywhere."""
    line = "x" * (cut - 1) + "日\r\n" + "y" * (cut - 1) + "\r\n"
    (tmp_path / "a.txt").write_bytes(line.encode())
    assert "".join(read(f"text:{tmp_path}/a.txt")) == line.replace("\r\n", "\n")


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("shard_bytes", [999, 2**20], indirect=True)
def test_a_large_file_is_cut_as_if_it_were_the_only_one(
    tmp_path: Path, shard_bytes: int, suffix: str
):
    limit = readers.SECTIONS_ABOVE
    line = "A line of text and the next one.\n\n"
    large = (line * limit)[: limit + 1]
    for name, text in {"a": large, "b": large[:limit], "c": line}.items():
        (tmp_path / f"{name}.txt").write_text(text)
        if suffix:
            compress(tmp_path / f"{name}.txt", suffix)
    alone = read(f"text:{tmp_path}/a.txt{suffix}")
    assert len(alone) > 5
    assert read(f"text:{tmp_path}/*.txt{suffix}") == [*alone, large[:limit], line]
    assert len(read(f"text:{tmp_path}/b.txt{suffix}")) > 5  # alone it is cut, whatever its size


def test_large_files_of_a_glob_are_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", (2**15, 2**15))
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("A line of text.\n" * 10_000)
    found = sources.open_source(f"text:{tmp_path}/*.txt").shards["train"]
    assert len(found) == -(-2 * 160_000 // 2**15)
    assert all(0 < shard.size <= 2**15 for shard in found)
    assert all(sum(map(len, shard.read())) <= 2**15 + 16 for shard in found)


def test_folder_gives_all_fitting_files_beneath_it(tmp_path: Path):
    for name in ("b/c/two.txt", "a.txt", "b/three.md", ".git/x.txt", "b/.x.txt", "x.py", "x.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    compress(tmp_path / "b/three.md", ".zst")
    assert read(f"text:{tmp_path}") == ["a.txt", "b/c/two.txt", "b/three.md"]
    write_as("jsonl", tmp_path / "b" / "rows.jsonl", PLAIN, "body")
    assert read(f"jsonl:{tmp_path}#body") == PLAIN
    with pytest.raises(
        UserError, match=rf"parquet:{tmp_path} has no file with the suffix .parquet"
    ):
        read(f"parquet:{tmp_path}")


def test_bare_folder_names_the_source_that_reads_it(tmp_path: Path):
    with pytest.raises(UserError, match=rf"is a folder, not a source: use text:{tmp_path} to read"):
        sources.open_source(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.txt", "text"), ("a.log", "text"), ("a.jsonl.gz", "jsonl"), ("a.csv", "csv"), ("*", "tsv")],
)
def test_path_without_a_kind_names_the_source_that_reads_it(tmp_path: Path, name: str, kind: str):
    (tmp_path / name.replace("*", "b.tsv")).touch()
    with pytest.raises(UserError) as error:
        sources.open_source(f"{tmp_path}/{name}")
    assert str(error.value).endswith(f"use {kind}:{tmp_path}/{name}.")


def test_number_sign_of_a_folder_is_no_field(tmp_path: Path):
    folder = tmp_path / "c#"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", ["x"])
    assert read(f"jsonl:{folder}/a.jsonl") == read(f"jsonl:{folder}/*.jsonl#text") == ["x"]


@pytest.mark.parametrize(
    ("kind", "content", "complaint"),
    [
        ("csv", "id,body\n1,x\n", r'a has no column of text "text" \(it has id, body\)'),
        ("csv", "id,text\n1,x\n2\n", r"a:3 ends a row of 1 columns, but the header has 2"),
        ("csv", 'text\n"x" y\n', "a:2 is not a row"),
        ("csv", "\ufeff", 'no column of text "text"'),
        ("tsv", "id\ttext\n1\tx\ty\n", "a:2 ends a row of 3 columns"),
        ("csv", "text\n\xff", r"not UTF-8 at byte 5 \(0xff\)"),
        ("parquet", "text", "a is not readable as Parquet"),
        ("jsonl", '{"text": 1}', r'no string field "text".*jsonl:GLOB#FIELD'),
    ],
)
def test_bad_table_is_named(tmp_path: Path, kind: str, content: str, complaint: str):
    encoding = "utf-8" if content == "\ufeff" else "latin1"
    (tmp_path / "a").write_bytes(content.encode(encoding))
    with pytest.raises(UserError, match=complaint):
        read(f"{kind}:{tmp_path}/a")


def test_parquet_without_the_column_or_with_nulls(tmp_path: Path):
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"n": [1, 2], "body": ["x", None]}), path)
    assert read(f"parquet:{path}#body") == ["x", ""]
    for field in ("text", "n"):
        message = rf'no column of text "{field}" \(it has body\): name one as in parquet:GLOB#'
        with pytest.raises(UserError, match=message):
            read(f"parquet:{path}#{field}")


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
def test_parquet_column_of_any_type_of_text(tmp_path: Path, kind: str):
    texts = pyarrow.array(["x", "y", "x"])
    texts = texts.dictionary_encode() if kind == "dictionary" else texts.cast(kind)
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet")
    assert read(f"parquet:{tmp_path}/a.parquet") == ["x", "y", "x"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_damaged_compressed_file_is_named(tmp_path: Path, suffix: str):
    path = tmp_path / "a.jsonl"
    write_jsonl(path, make_documents(2_000))
    compress(path, suffix)
    packed = Path(f"{path}{suffix}")
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(UserError, match=rf"a\.jsonl{suffix} is damaged .*get it again"):
        read(f"jsonl:{packed}")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_line_after_many_is_counted(tmp_path: Path, suffix: str):
    path = write_jsonl(tmp_path / "a.jsonl", ["x"] * 100_000)  # more than one block of the counter
    path.write_text(path.read_text() + "no JSON\n")
    if suffix:
        compress(path, suffix)
    with pytest.raises(UserError, match=r"a\.jsonl\S*:100001 is not JSON"):
        read(f"jsonl:{path}{suffix}")
