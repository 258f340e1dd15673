"""The site has every page and every public name, and its troubleshooting quotes real messages."""

import ast
import re
import tomllib
from pathlib import Path

import ddm_jax

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SITE = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
NOTEBOOK = "notebook/quickstart.md"  # which nbconvert makes


def pages(nav):
    """The files of a nav, in order."""
    for entry in nav:
        for value in entry.values():
            yield from pages(value) if isinstance(value, list) else [value]


def messages():
    """A pattern of every UserError in the code: its text, with anything in place of the values."""
    for path in sorted((ROOT / "ddm_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError":
                parts = getattr(node.args[0], "values", node.args)
                texts = [part.value for part in parts if isinstance(part, ast.Constant)]
                if len("".join(texts)) > 20:  # else any text is a case of it
                    yield "".join(
                        re.escape(part.value) if isinstance(part, ast.Constant) else ".*"
                        for part in parts
                    )


def test_every_page_is_in_the_nav():
    listed = list(pages(SITE["nav"]))
    assert sorted(listed) == sorted([NOTEBOOK, *(p.name for p in DOCS.glob("*.md"))])


def test_every_public_name_is_on_the_page_of_the_api():
    shown = set(re.findall(r"^::: ddm_jax\.(\w+)$", (DOCS / "api.md").read_text(), re.MULTILINE))
    assert shown == set(ddm_jax.__all__) - {"__version__"}


def test_troubleshooting_quotes_messages_of_the_code():
    blocks = re.findall(r"```text\n(.*?)```", (DOCS / "troubleshooting.md").read_text(), re.DOTALL)
    quoted = [line for block in blocks for line in block.splitlines()]
    known = list(messages())
    assert len(quoted) > 20
    assert not [x for x in quoted if not any(re.fullmatch(pattern, x) for pattern in known)]


def test_troubleshooting_names_every_extra_that_a_user_may_need():
    text = (DOCS / "troubleshooting.md").read_text()
    rows = re.findall(r"^\| (`.*`) \|", text, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert named == set(project["optional-dependencies"]) - {"bench", "dev", "docs"}
