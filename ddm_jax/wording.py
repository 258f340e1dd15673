"""Numbers with their nouns, and aligned columns, for what is printed."""

import unicodedata
from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """`1 sequence`, `2 sequences`, `1,024 tokens`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def printable(text: str) -> str:
    """A text whose control characters, which a terminal would obey, are shown as U+FFFD.

    Line feeds and tabs stay. A byte model that is hardly trained writes the others.
    """
    return "".join(
        char
        if char in "\n\t" or unicodedata.category(char) != "Cc"
        else "\N{REPLACEMENT CHARACTER}"
        for char in text
    )


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: the first column is aligned at its left, the others at their right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )
