"""Every field of the config with its default, its values and its meaning.

`--help_config` of a command prints them, `--help_config=optim` those of a section.
`--help_config=markdown` prints docs/config.md.
"""

import dataclasses
import math
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddm_jax.config import Config
from ddm_jax.config_fields import TYPE_WORDS, Option, is_section, plain_type
from ddm_jax.data.sources import registry as sources
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.diffusion.discrete_schedules import DISCRETE_SCHEDULES
from ddm_jax.diffusion.processes import PROCESSES
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.errors import UserError
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.parallel.layouts import LAYOUTS
from ddm_jax.samplers import SAMPLERS

MARKDOWN = "markdown"
_WIDTH = 100
_HEAD = """# Every field of the config

`python -m ddm_jax.main --help_config=markdown` writes this page, `--help_config` prints it in the
terminal, and `--help_config=optim` one section of it. A recipe sets fields
(`config.optim.lr = 1e-3`), and so does the command line (`--config.optim.lr=1e-3`).

An option whose default is empty belongs to the rows of a table that the last column names, with the
default that it has there. It is refused for all other rows.
"""


@dataclass(frozen=True)
class FieldHelp:
    """What there is to know of a field.

    Attributes:
      path: such as "train.steps".
      default: as on the command line; "" if it is empty.
      values: those that it takes, in words.
      meaning: what it decides, and of an option, which rows have it.
    """

    path: str
    default: str
    values: str
    meaning: str


def config_help(wanted: str = "") -> str:
    """The fields as text for a terminal.

    Args:
      wanted: a section or a field; "" for all; "markdown" for the page docs/config.md.

    Raises:
      UserError: there is no such section or field.
    """
    if wanted == MARKDOWN:
        return _markdown()
    wanted = wanted.removeprefix("config.")
    blocks = []
    for title, fields in _sections():
        chosen = [f for f in fields if not wanted or f"{f.path}.".startswith(f"{wanted}.")]
        if chosen:
            blocks.append("\n".join([title, "", *map(_as_text, chosen)]))
    if not blocks:
        names = [f.name for f in dataclasses.fields(Config)]
        raise UserError(
            f"--help_config={wanted} is unknown: give one of {', '.join(names)}, or one of their "
            "fields."
        )
    return "\n\n".join(blocks)


def _markdown() -> str:
    lines = [_HEAD]
    for title, fields in _sections():
        name, _, summary = title.partition(": ")
        lines += [f"## {name}", "", summary, ""]
        lines += ["| field | default | values | meaning |", "|---|---|---|---|"]
        lines += [
            f"| `{f.path}` | {f'`{f.default}`' if f.default else ''} | {_cell(f.values)} | "
            f"{_cell(f.meaning)} |"
            for f in fields
        ]
        lines.append("")
    return "\n".join(lines).rstrip()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _as_text(field: FieldHelp) -> str:
    head = f"  --config.{field.path}={field.default}"
    body = f"{field.meaning} [{field.values}]"
    indent = " " * 6
    return "\n".join(
        [head, *textwrap.wrap(body, _WIDTH, initial_indent=indent, subsequent_indent=indent)]
    )


def _sections() -> Iterator[tuple[str, list[FieldHelp]]]:
    """(name and meaning, its fields) of each section; the fields of no section come first."""
    hints = typing.get_type_hints(Config)
    own = [f for f in dataclasses.fields(Config) if not is_section(hints[f.name])]
    yield f"config: {_summary(Config)}", [_field_help(f, hints[f.name], "") for f in own]
    for section, hint in hints.items():
        if is_section(hint):
            inner = typing.get_type_hints(hint)
            fields = [_field_help(f, inner[f.name], section) for f in dataclasses.fields(hint)]
            yield f"{section}: {_summary(hint)}", fields


def _summary(record: type) -> str:
    return " ".join((record.__doc__ or "").split())


def _field_help(field: dataclasses.Field[Any], hint: Any, section: str) -> FieldHelp:
    path = f"{section}.{field.name}".removeprefix(".")
    meaning = field.metadata["meaning"]
    rows = [
        f"{name} ({_word(option.default)})" if option.default != "" else name
        for name, options in _OPTIONS.get(section, {}).items()
        for option in options
        if option.name == field.name
    ]
    if field.default is None and rows:
        meaning += f"; applies to {', '.join(rows)}"
    return FieldHelp(path, _word(field.default), _values(field, hint, path), meaning)


def _values(field: dataclasses.Field[Any], hint: Any, path: str) -> str:
    """The values that a field takes, in words."""
    kind, metadata = plain_type(hint), field.metadata
    words = _NAMES.get(path, metadata.get("allowed", ()))
    if words:
        return ", ".join(filter(None, words))
    if "low" not in metadata or kind not in (int, float):
        return TYPE_WORDS[kind]
    low, high = metadata["low"], metadata["high"]
    return TYPE_WORDS[kind] + (
        f" from {low:g} to {high:.10g}" if math.isfinite(high) else f", at least {low:g}"
    )


def _word(value: object) -> str:
    """A value as it is written on the command line; "" for an empty one."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None or value in ("", ()) else str(value)


_OPTIONS: Mapping[str, Mapping[str, Sequence[Option]]] = {
    "objective": {name: (*row.options, *row.init_options) for name, row in OBJECTIVES.items()},
    "process": {name: row.options for name, row in PROCESSES.items()},
    "schedule": {name: row.options for name, row in SCHEDULES.items()},
    "sampler": {name: row.options for name, row in SAMPLERS.items()},
}
# the names that a field takes, where a table has them
_NAMES: Mapping[str, Sequence[str]] = {
    "objective.name": list(OBJECTIVES),
    "process.name": ["auto", *PROCESSES],
    "schedule.name": ["auto", *SCHEDULES, *DISCRETE_SCHEDULES],
    "sampler.name": ["auto", *SAMPLERS],
    "layout.name": list(LAYOUTS),
    "eval.estimator": ["auto", *(name for name, row in OBJECTIVES.items() if row.estimates)],
    "data.source": [*sources.KINDS, "FOLDER"],
    "data.tokenizer": list(tokenizers.KINDS),
}
