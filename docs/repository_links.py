"""A Markdown extension of the site: links from docs/ to files outside it.

`[local.py](../launch/local.py)` works in a checkout, but the site does not contain the file, and
this project does not know the address of its repository. The site therefore shows the path.
"""

import posixpath
from xml.etree.ElementTree import Element, SubElement

from markdown import Extension, Markdown
from markdown.treeprocessors import Treeprocessor

# files outside docs/ that the site shows as a page
PAGES = {"../examples/quickstart.ipynb": "notebook/quickstart.md"}


class _ShowPaths(Treeprocessor):
    def run(self, root: Element) -> None:
        for link in root.iter("a"):
            target = link.get("href", "")
            if target in PAGES:
                link.set("href", PAGES[target])
            elif target.startswith("../"):
                _show_path(link, posixpath.normpath(target.removeprefix("../")))


def _show_path(link: Element, path: str) -> None:
    """A link -> the path as code, after the text of the link where that says something else."""
    text = "".join(link.itertext())
    tail = link.tail
    link.clear()
    link.tail = tail
    link.tag = "span"
    link.text = "" if text in path else f"{text} "
    SubElement(link, "code").text = path


class RepositoryLinks(Extension):
    """Registers the processor, before the one that resolves links between pages."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: D102
        md.treeprocessors.register(_ShowPaths(md), "repository_links", 5)


def makeExtension(**kwargs: object) -> RepositoryLinks:  # noqa: D103
    return RepositoryLinks(**kwargs)
