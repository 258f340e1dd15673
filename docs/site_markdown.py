r"""A Markdown extension of the site: what GitHub shows otherwise than Python-Markdown.

- `[local.py](../launch/local.py)` works in a checkout, but the site does not contain the file, and
  this project does not know the address of its repository. The site therefore shows the path.
- In a table GitHub needs `\|` within code; Python-Markdown would show the backslash.
"""

import posixpath
from pathlib import PurePosixPath
from xml.etree.ElementTree import Element, SubElement

from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor
from markdown.util import AtomicString

# files outside docs/ that the site shows as a page
PAGES = {"../examples/quickstart.ipynb": "notebook/quickstart.md"}


class _AsOnGitHub(Treeprocessor):
    def run(self, root: Element) -> None:
        for link in root.iter("a"):
            target = link.get("href", "")
            if target in PAGES:
                link.set("href", PAGES[target])
            elif target.startswith("../"):
                _show_path(link, posixpath.normpath(target.removeprefix("../")))
        for code in root.iterfind(".//td//code"):
            _break_at_pipes(code)


def _show_path(link: Element, path: str) -> None:
    """A link -> the path as code, after the text of the link where that says something else.

    A recipe keeps its name: [radd_tiny](../configs/radd_tiny.py).
    """
    text, tail = "".join(link.itertext()), link.tail
    link.clear()
    link.tag, link.tail = "span", tail
    named = text == PurePosixPath(path).stem
    link.text = "" if text.rstrip("/") in path else f"{text} "
    SubElement(link, "code", title=path).text = text if named else path


def _break_at_pipes(code: Element) -> None:
    r"""Shows `\|` as `|`, before which a line may break, so that a table need not be as wide."""
    first, *rest = (code.text or "").split(r"\|")
    code.text = AtomicString(first)
    for word in rest:
        SubElement(code, "wbr").tail = AtomicString(f"|{word}")


class SiteMarkdown(Extension):
    """Registers the processor after the one of inline elements (20), which makes links and code."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: D102
        md.treeprocessors.register(_AsOnGitHub(md), "as_on_github", 15)


def makeExtension(**kwargs: object) -> SiteMarkdown:  # noqa: D103
    return SiteMarkdown(**kwargs)
