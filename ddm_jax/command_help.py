"""What the commands say of themselves: --help, --version, and the list of `python -m ddm_jax`.

absl's --help prints the flags of the main module only; ours prints all that the command defines, by
group. --helpfull stays absl's, with the flags of all libraries.
"""

import ast
import difflib
import importlib.metadata
import os
import platform
import shutil
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

import ddm_jax

# name -> module, in the order in which a user meets them
COMMANDS = {
    "main": "ddm_jax.main",
    "sample": "ddm_jax.sample",
    "evaluate": "ddm_jax.evaluate",
    "compare": "ddm_jax.compare.__main__",
    "prepare": "ddm_jax.prepare",
    "translate": "ddm_jax.translate",
    "judge": "ddm_jax.judge",
    "convert": "ddm_jax.convert",
    "aot": "ddm_jax.aot.__main__",
}
_WIDEST, _COLUMN = 100, 28
_LAST = "Output"  # the group that is listed after the others
_WORDS = {"int": "N", "float": "X", "string": "TEXT", "config object": "RECIPE"}
_CONFIG_LINES = {
    "--config.FIELD=VALUE": "sets a field of the recipe, such as --config.train.steps=200",
    "--help_config": "list the fields, or with --help_config=optim those of a section",
}
_HELP_LINES = {
    "--help": "show this text",
    "--helpfull": "show the flags of all libraries, too",
    "--version": "show the versions of ddm_jax, jax and Python",
}


def help_text(doc: str, groups: Mapping[str, str]) -> str:
    """The text of --help.

    Args:
      doc: the docstring of the command's module.
      groups: flag -> the title under which it is listed, for every flag of the command.
    """
    lines = [doc.strip()]
    for title in sorted(dict.fromkeys(groups.values()), key=_LAST.__eq__):
        lines += ["", f"{title}:"]
        for name in (name for name in groups if groups[name] == title):
            lines += _entry(*_describe(flags.FLAGS[name]))
            if name == "config":
                lines += [line for pair in _CONFIG_LINES.items() for line in _entry(*pair)]
    lines += ["", "Help:"]
    lines += [line for pair in _HELP_LINES.items() for line in _entry(*pair)]
    return "\n".join(lines)


def show(text: str) -> None:
    """Prints a text, of which the reader may be `head`."""
    try:
        print(text, flush=True)
    except BrokenPipeError:  # Python would fail again when it closes its standard output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def version_text() -> str:
    """The versions, found without importing jax."""
    return (
        f"ddm_jax {ddm_jax.__version__}, jax {importlib.metadata.version('jax')}, "
        f"Python {platform.python_version()}"
    )


def overview() -> str:
    """The commands, with the first sentence of the docstring of each; imports none of them."""
    lines = [f"{version_text()}: discrete diffusion language models.", ""]
    for name, module in COMMANDS.items():
        lines += _entry(f"python -m ddm_jax.{name}", _first_line(module), column=32)
    lines += [
        "",
        "Each shows its flags, with examples: `python -m ddm_jax.main --help`. The fields of a",
        "recipe: `python -m ddm_jax.main --help_config`. From Python: `import ddm_jax`, and",
        "`help(ddm_jax)`. README.md and the folder docs have the rest.",
    ]
    return "\n".join(lines)


def unknown_command(word: str) -> str:
    """What is wrong with `python -m ddm_jax WORD`: the commands are modules."""
    close = difflib.get_close_matches(word, COMMANDS, n=1)
    if close:
        return f"{word} is not an argument of ddm_jax: use `python -m ddm_jax.{close[0]}`."
    return f"{word} is not an argument of ddm_jax: `python -m ddm_jax` lists the commands."


def _first_line(module: str) -> str:
    """The first line of a module's docstring."""
    path = Path(__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.split("\n")[0]


def _describe(flag: Any) -> tuple[str, str]:
    """(how a flag is written, what it does and its default)."""
    kind = flag.flag_type()
    meaning = " ".join((flag.help or "").split())
    meaning = meaning.removesuffix("; repeat this option to specify a list of values")
    if kind == "bool":
        return f"--[no]{flag.name}" if flag.default else f"--{flag.name}", meaning
    value = "A,B" if kind.startswith("comma") else _WORDS.get(kind.removeprefix("multi "), "TEXT")
    if kind == "string enum":
        value = "|".join(flag.parser.enum_values)
        meaning = meaning.removeprefix(f"<{value}>: ")
    default = flag.default
    if isinstance(default, list):
        default = ",".join(map(str, default))
    known = "" if default is None or default == "" else f" (default: {default})"
    return f"--{flag.name}={value}", meaning + known


def _entry(head: str, text: str, column: int = _COLUMN) -> list[str]:
    """Two columns; the second starts on a line of its own where the first is long."""
    width = min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)
    indent = " " * column
    first = f"  {head}  ".ljust(column)
    lines = textwrap.wrap(
        text, max(width, column + 20), initial_indent=indent, subsequent_indent=indent
    )
    if len(first) > column:
        return [first.rstrip(), *lines]
    return [first + lines[0][column:], *lines[1:]]
