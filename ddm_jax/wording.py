"""Numbers with their nouns, and aligned columns, for what is printed."""

from collections.abc import Sequence


def counted(number: int, noun: str) -> str:
    """`1 sequence`, `2 sequences`, `1,024 tokens`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: the first column is aligned at its left, the others at their right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )
