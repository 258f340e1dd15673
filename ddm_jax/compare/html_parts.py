"""Pieces of HTML: sections, sortable tables, figures. All text is escaped."""

import html
from collections.abc import Mapping, Sequence

# a cell of a table: its text, or (its text, what it is sorted by)
Entry = str | tuple[str, float | str]


def escape(text: str) -> str:
    """Text as it is written in HTML, within an element or an attribute."""
    return html.escape(text, quote=True)


def section(title: str, content: str) -> str:
    """A heading with its content; its id is the title in lower case with dashes."""
    name = title.lower().replace(" ", "-")
    return f'<section id="{name}"><h2>{escape(title)}</h2>\n{content}</section>'


def answer(text: str) -> str:
    """The sentence that answers the heading."""
    return f'<p class="answer">{escape(text)}</p>'


def note(text: str) -> str:
    """A paragraph in small print; an empty string for empty text."""
    return f'<p class="quiet">{escape(text)}</p>' if text else ""


def figures(plots: Mapping[str, str], captions: Mapping[str, str], *names: str) -> str:
    """The named plots that exist, side by side where there is room."""
    found = [
        f'<figure role="img" aria-label="{escape(captions[name])}">{plots[name]}'
        f"<figcaption>{escape(captions[name])}</figcaption></figure>"
        for name in names
        if name in plots
    ]
    return f'<div class="plots">{"".join(found)}</div>' if found else ""


def number(value: float | None, form: str, scale: float = 1.0) -> Entry:
    """A table entry of a number, sorted by its value; None is a dash, which is sorted last.

    Args:
      value: the number.
      form: format specification, such as ".2f"; "d" shows the value without scaling it.
      scale: factor between the value and the number shown.
    """
    if value is None:
        return "-", ""
    shown = value if form == "d" else value * scale
    return format(shown, form), value


def html_table(
    heads: Sequence[str],
    rows: Sequence[Sequence[Entry]],
    words: Sequence[int] = (),
    long: Sequence[int] = (),
) -> str:
    """A table that can be sorted by any column.

    Args:
      heads: titles of the columns.
      rows: entries, one for each column.
      words: indices of columns that hold text.
      long: indices of columns whose text wraps.
    """
    if not rows:
        return note("Nothing to show yet.")
    head = "".join(
        f'<th{_class(i, words, long)} scope="col">'
        f'<button type="button">{escape(text)}</button></th>'
        for i, text in enumerate(heads)
    )
    body = "\n".join(
        "<tr>"
        + "".join(_cell(entry, _class(i, words, long)) for i, entry in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _class(column: int, words: Sequence[int], long: Sequence[int]) -> str:
    """The class attribute of a column's cells, with a leading space; empty for numbers."""
    names = [name for name, columns in (("words", words), ("long", long)) if column in columns]
    return f' class="{" ".join(names)}"' if names else ""


def _cell(entry: Entry, attribute: str) -> str:
    if isinstance(entry, str):
        return f"<td{attribute}>{escape(entry)}</td>"
    text, key = entry
    return f'<td{attribute} data-key="{escape(str(key))}">{escape(text)}</td>'
