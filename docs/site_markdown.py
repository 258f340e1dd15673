r"""A Markdown extension of the site: what GitHub shows otherwise than Python-Markdown.

- `[local.py](../launch/local.py)` works in a checkout, but the site does not contain the file, and
  this project does not know the address of its repository. The site therefore shows the path.
- In a table GitHub needs `\|` within code; Python-Markdown would show the backslash.
"""

import posixpath
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
            code.text = AtomicString((code.text or "").replace(r"\|", "|"))


def _show_path(link: Element, path: str) -> None:
    """A link -> the path as code, after the text of the link where that says something else."""
    text, tail = "".join(link.itertext()), link.tail
    link.clear()
    link.tag, link.tail = "span", tail
    link.text = "" if text in path else f"{text} "
    SubElement(link, "code").text = path


class SiteMarkdown(Extension):
    """Registers the processor after the one of inline elements (20), which makes links and code."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: D102
        md.treeprocessors.register(_AsOnGitHub(md), "as_on_github", 15)


def makeExtension(**kwargs: object) -> SiteMarkdown:  # noqa: D103
    return SiteMarkdown(**kwargs)
