"""Runs every command of README.md and docs/tutorial.md, as a new user would.

    python tests/run_pages.py                              # with python3, both pages
    python tests/run_pages.py --python=python3.13 README.md

Each page has a fresh clone of what is committed here and an empty home. Its blocks of ```bash and
```python run in order, as written, in one shell that stops at the first failure. A block after a
line `<!-- skip: REASON -->` is not run, and the reason is shown. It takes half an hour, and is not
part of `make test`; tests/test_readme.py checks that the blocks can be found.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/tutorial.md")
_BLOCK = re.compile(
    r"(?:^<!-- skip: (?P<skip>[^\n]+) -->\n+)?^```(?P<language>bash|python)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """Commands of a page.

    Attributes:
      line: of the page, where the block begins.
      language: "bash" or "python".
      text: the commands.
      skip: why they are not run; "" if they are.
    """

    line: int
    language: str
    text: str
    skip: str


def find_blocks(page: str) -> Iterator[Block]:
    """Yields the blocks of ```bash and ```python in the text of a page."""
    for match in _BLOCK.finditer(page):
        line = page.count("\n", 0, match.start("language")) + 1
        yield Block(line, match["language"], match["text"], match["skip"] or "")


def make_script(name: str, blocks: Sequence[Block]) -> str:
    """The shell script that runs the blocks, and says where it is and how long each took."""
    lines = ["set -eo pipefail"]
    for block in blocks:
        place = f"{name}:{block.line}"
        if block.skip:
            lines.append(f"echo {shlex.quote(f'=== {place} skipped: {block.skip}')}")
            continue
        text = block.text
        if block.language == "python":
            text = f"python - <<'END_OF_BLOCK'\n{text}END_OF_BLOCK\n"
        lines += [f"echo '=== {place}'", "SECONDS=0", text, f'echo "=== {place} took $SECONDS s"']
    return "\n".join(lines) + "\n"


def run_page(name: str, python: str) -> int:
    """Runs a page from a fresh clone in an empty home; returns the exit code of its shell."""
    with tempfile.TemporaryDirectory(prefix="run_pages_") as scratch:
        folder = Path(scratch)
        clone, home, tools = folder / "ddm_jax", folder / "home", folder / "bin"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        home.mkdir()
        tools.mkdir()
        (tools / "python3").write_text(f'#!/bin/sh\nexec {shlex.quote(python)} "$@"\n')
        (tools / "python3").chmod(0o755)
        ours = {"HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}"}
        without = ("VIRTUAL_ENV", "PYTHONPATH", "DDM_ORACLES")
        env = {k: v for k, v in os.environ.items() if k not in without} | ours
        blocks = list(find_blocks((clone / name).read_text(encoding="utf-8")))
        script = folder / "script.sh"
        script.write_text(make_script(name, blocks), encoding="utf-8")
        return subprocess.run(["bash", str(script)], cwd=clone, env=env, check=False).returncode


def main() -> int:
    """Runs the pages of the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Runs the commands of pages from a fresh clone.")
    parser.add_argument("--python", default="python3", help="the interpreter that python3 means")
    parser.add_argument("pages", nargs="*", default=PAGES, help="paths from the top of the tree")
    args = parser.parse_args()
    python = shutil.which(args.python)
    if not python:
        parser.error(f"--python={args.python} is not found: give the path of an interpreter.")
    for name in args.pages:
        if code := run_page(name, python):
            print(f"=== {name} failed with code {code}", file=sys.stderr)
            return code
    print("=== all commands ran")
    return 0


if __name__ == "__main__":
    sys.exit(main())
