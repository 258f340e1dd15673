"""Pieces of HTML: sections, tables that sort, figures. All text is escaped."""

import html
from collections.abc import Mapping, Sequence

Entry = str | tuple[str, float | str]


def section(title: str, content: str) -> str:
    """A heading with its content, and an id to link to: the title in lower case, with dashes."""
    name = title.lower().replace(" ", "-")
    return f'<section id="{name}"><h2>{e(title)}</h2>\n{content}</section>'


def answer(text: str) -> str:
    """The sentence that answers the heading."""
    return f'<p class="answer">{e(text)}</p>'


def quiet(text: str) -> str:
    """A note; nothing if it is empty."""
    return f'<p class="quiet">{e(text)}</p>' if text else ""


def figures(plots: Mapping[str, str], captions: Mapping[str, str], *names: str) -> str:
    """Those of the plots that there are, beside each other where there is room."""
    found = [
        f'<figure role="img" aria-label="{e(captions[name])}">{plots[name]}'
        f"<figcaption>{e(captions[name])}</figcaption></figure>"
        for name in names
        if name in plots
    ]
    return f'<div class="plots">{"".join(found)}</div>' if found else ""


def number(value: float | None, form: str, scale: float = 1.0) -> Entry:
    """How a number is shown, and what it is sorted by; a dash comes last."""
    if value is None:
        return "-", ""
    shown = value if form == "d" else value * scale
    return format(shown, form), value


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[Entry]],
    words: Sequence[int] = (),
    long: Sequence[int] = (),
) -> str:
    """A table that sorts by any column. words: columns of text; long: of text that wraps."""
    if not rows:
        return quiet("Nothing to show yet.")

    def mark(i: int) -> str:
        names = ["words"] * (i in words) + ["long"] * (i in long)
        return f' class="{" ".join(names)}"' if names else ""

    def cell(i: int, entry: Entry) -> str:
        text, key = entry if isinstance(entry, tuple) else (entry, None)
        data = "" if key is None else f' data-key="{e(str(key))}"'
        return f"<td{mark(i)}{data}>{e(text)}</td>"

    head = "".join(
        f'<th{mark(i)} scope="col"><button type="button">{e(text)}</button></th>'
        for i, text in enumerate(heads)
    )
    body = "\n".join(f"<tr>{''.join(map(cell, range(len(row)), row))}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def e(text: str) -> str:
    """Text as it stands in a page."""
    return html.escape(text, quote=True)
