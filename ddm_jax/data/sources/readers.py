"""How the documents of a file are read: text, JSON lines, tables with columns, Parquet.

A reader streams: it holds one document, or one row group of a Parquet file.
"""

import codecs
import csv
import io
import itertools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence

from ddm_jax.data.sources.files import lines, not_utf8, place
from ddm_jax.data.sources.shards import Span
from ddm_jax.errors import UserError

SECTION_CHARS = 2**13
SECTIONS_ABOVE = 2**16  # bytes of a file that is cut into sections, if it is one of several
_PIECE = 2**16  # bytes of a long line that are read at once


def read_whole(span: Span) -> Iterator[str]:
    """Yields a file as one document.

    Raises:
      UserError: the file is not UTF-8.
    """
    yield "".join(text for _, text in _decode_lines(span))


def read_text(span: Span, single: bool) -> Iterator[str]:
    r"""Yields the sections of a span, or a file of up to `SECTIONS_ABOVE` bytes as one document.

    "\r\n" and "\r" become "\n". A section has at least `SECTION_CHARS` characters and ends at a
    blank line. Text without blank lines is cut after four times that many characters: at the end of
    a line, or at a space if lines are longer. The sections together are the whole text.

    Args:
      span: part of a file, which belongs to a larger one; or a whole file.
      single: whether the source is this file only: it is then cut into sections whatever its size.

    Raises:
      UserError: the file is not UTF-8, or damaged.
    """
    pieces = _decode_lines(span)
    head: list[str] = []
    if span.stop is None and not single:
        for end, text in pieces:
            head.append(text)
            if end > SECTIONS_ABOVE:
                break
        else:
            yield "".join(head)
            return
    yield from _sections(itertools.chain(head, (text for _, text in pieces)))


def read_jsonl(span: Span, field: str) -> Iterator[str]:
    """Yields a field of the object on each line; skips blank lines.

    Raises:
      UserError: a line is not UTF-8, not JSON, or has no such string (named as file:line).
    """
    example = f"each line must be an object like {{{json.dumps(field)}: {json.dumps('...')}}}"
    for offset, raw in lines(span.path, span.start, span.stop):
        if not raw.strip():
            continue
        try:
            record = json.loads(_decode(raw, span, offset))
        except (ValueError, RecursionError) as error:  # also of long numbers, and deep nesting
            reason = getattr(error, "msg", type(error).__name__)
            raise UserError(
                f"{place(span.path, offset)} is not JSON ({reason}): {example}."
            ) from None
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            raise UserError(
                f'{place(span.path, offset)} has no string field "{field}" ({_has(record)}): '
                f"{example}, or name another field as in jsonl:GLOB#FIELD."
            )
        yield _without_surrogates(record[field], span, offset)


def _has(record: object) -> str:
    """Says which fields of a JSON line are strings, for a message."""
    if not isinstance(record, dict):
        return f"it is a {type(record).__name__}"
    strings = sorted(name for name, value in record.items() if isinstance(value, str))
    return f"its string fields: {', '.join(strings) or 'none'}"


def read_csv(span: Span, field: str) -> Iterator[str]:
    """Yields a column of a file of comma-separated values; quoted values may have line breaks.

    Raises:
      UserError: there is no such column, a row is not like the header, or the file is not UTF-8.
    """
    return _read_table(span, field, delimiter=",", quoting=csv.QUOTE_MINIMAL)


def read_tsv(span: Span, field: str) -> Iterator[str]:
    """Yields a column of a file of tab-separated values, in which quotes have no special meaning.

    Raises:
      UserError: see `read_csv`.
    """
    return _read_table(span, field, delimiter="\t", quoting=csv.QUOTE_NONE)


def read_parquet(span: Span, field: str) -> Iterator[str]:
    """Yields a column of strings of a Parquet file; a null is an empty document.

    Raises:
      UserError: the file is not Parquet, or has no such column of strings.
    """
    import pyarrow  # slow to import
    from pyarrow import parquet

    def is_text(kind: pyarrow.DataType) -> bool:
        if pyarrow.types.is_dictionary(kind):  # such as a category of pandas
            kind = kind.value_type
        return kind in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())

    try:
        with parquet.ParquetFile(span.path, pre_buffer=False) as file:
            strings = [column.name for column in file.schema_arrow if is_text(column.type)]
            if field not in strings:
                raise _no_column(span, "parquet", field, strings)
            for batch in file.iter_batches(batch_size=256, columns=[field]):
                yield from (text or "" for text in batch.column(0).to_pylist())
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:100].rstrip(".")
        raise UserError(f"{span.path} is not readable as Parquet ({reason}).") from None


def _read_table(span: Span, field: str, delimiter: str, quoting: int) -> Iterator[str]:
    csv.field_size_limit(sys.maxsize)  # by default a value has at most 128 kB
    raw = lines(span.path)
    rows = csv.reader(
        (_decode(line, span, offset) for offset, line in raw),
        delimiter=delimiter,
        quoting=quoting,  # type: ignore[arg-type]  # a constant of csv
        strict=True,
    )
    try:
        header = next(rows, [])
        if field not in header:
            kind = "tsv" if delimiter == "\t" else "csv"
            raise _no_column(span, kind, field, header)
        column = header.index(field)
        for row in rows:
            if len(row) != len(header):
                if not row:
                    continue
                raise UserError(
                    f"{span.path}:{rows.line_num} ends a row of {len(row)} columns, but the header "
                    f"has {len(header)}: correct the file."
                )
            yield row[column]
    except csv.Error as error:
        raise UserError(f"{span.path}:{rows.line_num} is not a row ({error}).") from None


def _no_column(span: Span, kind: str, field: str, columns: Sequence[str]) -> UserError:
    return UserError(
        f'{span.path} has no column of text "{field}" (it has {", ".join(columns) or "none"}): '
        f"name one as in {kind}:GLOB#COLUMN."
    )


def _sections(pieces: Iterable[str]) -> Iterator[str]:
    section: list[str] = []
    size = 0
    for line in _short_lines(pieces):
        section.append(line)
        size += len(line)
        if size >= 4 * SECTION_CHARS or (size >= SECTION_CHARS and not line.strip()):
            yield "".join(section)
            section, size = [], 0
    if section:
        yield "".join(section)


def _short_lines(pieces: Iterable[str]) -> Iterator[str]:
    """Yields lines with their ends; those above `SECTION_CHARS` in parts, cut after a space."""
    rest = ""
    for piece in pieces:
        rest += piece
        start = 0
        while stop := _end_of_part(rest, start):
            yield rest[start:stop]
            start = stop
        rest = rest[start:]
    if rest:
        yield rest


def _end_of_part(text: str, start: int) -> int:
    """Returns where the line, or part of a line, from `start` ends; 0 if more has to be read."""
    end = text.find("\n", start, start + SECTION_CHARS) + 1
    if end or len(text) - start <= SECTION_CHARS:
        return end
    return text.rfind(" ", start, start + SECTION_CHARS) + 1 or start + SECTION_CHARS


def _decode_lines(span: Span) -> Iterator[tuple[int, str]]:
    r"""Yields (byte offset of its end, text) of lines or pieces of them, with "\n" as line end."""
    utf8 = codecs.getincrementaldecoder("utf-8")()
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    end = 0
    try:
        for offset, raw in lines(span.path, span.start, span.stop, _PIECE):
            end = offset + len(raw)
            yield end, decoder.decode(raw)
        yield end, decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        start = end - len(error.object) + error.start
        raise not_utf8(span.path, start, error.object[error.start]) from None


def _decode(raw: bytes, span: Span, offset: int) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(span.path, offset + error.start, raw[error.start]) from None


def _without_surrogates(text: str, span: Span, offset: int) -> str:
    """Refuses half of a surrogate pair, which JSON can spell and no encoding can write."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UserError(
            f"{place(span.path, offset)} has {text[error.start]!r} in its text, half of a "
            "surrogate pair: remove it."
        ) from None
    return text
