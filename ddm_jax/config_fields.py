"""How a field of the config is declared and read from a recipe; config.py has the fields."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from ml_collections import config_dict

from ddm_jax.errors import UserError

TYPE_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    tuple: "a tuple of strings (on the command line: separated by commas)",
}


def setting(default: bool | str | tuple[str, ...] | None, meaning: str) -> Any:
    """A field that takes a string, several strings, or true or false.

    Args:
      default: what the field is unless it is set; None for an option that is empty by default.
      meaning: what it decides, for --help_config and docs/config.md.
    """
    return field(default=default, metadata={"meaning": meaning})


def choice(allowed: tuple[str | None, ...], meaning: str) -> Any:
    """A field that takes one of a few words.

    Args:
      allowed: the words, the default first; None for an option that is empty by default.
      meaning: what it decides, and what the words stand for.
    """
    return field(default=allowed[0], metadata={"allowed": allowed, "meaning": meaning})


def number(
    default: float | None, meaning: str, low: float = float("-inf"), high: float = float("inf")
) -> Any:
    """A field that takes a finite number from low to high, both included.

    Args:
      default: what the field is unless it is set; None for an option that is empty by default.
      meaning: what it decides, with its unit.
      low: the smallest value.
      high: the largest value.
    """
    return field(default=default, metadata={"low": low, "high": high, "meaning": meaning})


@dataclass(frozen=True)
class Option:
    """An option that a row of OBJECTIVES, SAMPLERS, PROCESSES or SCHEDULES names.

    It is a field of the row's config section (config.objective, ...) that is None by default: empty
    where the row has no such option, and the row's default where it has.

    Attributes:
      name: of the field.
      default: what an empty field means.
      choices: the words that this row allows, where the field's own are more; empty for all.
    """

    name: str
    default: bool | int | float | str
    choices: tuple[str, ...] = ()


def to_config_dict(record: type) -> config_dict.ConfigDict:
    """The fields of a section with their defaults, as an ml_collections record."""
    out = config_dict.ConfigDict()
    for f, hint in _fields(record):
        if is_section(hint):
            out[f.name] = to_config_dict(hint)
        elif f.default is None:
            out[f.name] = config_dict.placeholder(plain_type(hint))
        else:
            out[f.name] = f.default
    return out.lock()


def from_mapping(record: type, values: Mapping[str, Any], where: str) -> Any:
    """A section with the values of a recipe, each of them checked.

    Args:
      record: the dataclass of the section.
      values: name -> value; sections within it are mappings too.
      where: the section's name, for messages.

    Raises:
      UserError: an unknown field, a wrong type, or a value that is not allowed.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} must be a section of fields, not {values!r}.")
    for key in values:
        check_known(record, key, where)
    read = {}
    for f, hint in _fields(record):
        if f.name in values:
            child, value = f"{where}.{f.name}", values[f.name]
            if is_section(hint):
                read[f.name] = from_mapping(hint, value, child)
            else:
                read[f.name] = _checked(value, f, hint, child)
    return record(**read)


def check_known(record: type, name: str, where: str) -> None:
    """Raises UserError if a section has no field of this name; the message gives a close one."""
    names = [f.name for f in dataclasses.fields(record)]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(
            f"{where}.{name} is unknown{hint}: {where} has the fields {', '.join(names)}."
        )


def _checked(value: Any, f: dataclasses.Field[Any], hint: Any, where: str) -> Any:
    """The value of a field, a whole number as a float where the field is one.

    Raises:
      UserError: it has the wrong type, is not an allowed word, or is out of range.
    """
    if value is None and f.default is None:
        return None
    wanted = plain_type(hint)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if wanted is tuple and isinstance(value, list):  # JSON has no tuples
        value = tuple(value)
    strings: Any = value if type(value) is tuple else ()
    if type(value) is not wanted or not all(type(x) is str for x in strings):
        raise UserError(f"{where}={value!r} has the wrong type: give {TYPE_WORDS[wanted]}.")
    allowed = f.metadata.get("allowed", (value,))
    if value not in allowed:
        raise UserError(
            f"{where}={value!r} is unknown: choose one of {', '.join(filter(None, allowed))}."
        )
    if isinstance(value, (int, float)) and wanted is not bool:
        low, high = f.metadata["low"], f.metadata["high"]
        if not (low <= value <= high and math.isfinite(value)):
            between = f"from {low} to {high}" if math.isfinite(high) else f"of at least {low}"
            raise UserError(f"{where}={value!r} is out of range: give a finite number {between}.")
    return value


def is_section(hint: Any) -> TypeGuard[type]:
    """Whether the type of a field is a section of fields."""
    return dataclasses.is_dataclass(hint)


def _fields(record: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(record)
    return [(f, hints[f.name]) for f in dataclasses.fields(record)]


def plain_type(hint: Any) -> type:
    """`float | None` -> float, `tuple[str, ...]` -> tuple."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    plain: type = next(t for t in kinds if t is not types.NoneType)
    return typing.get_origin(plain) or plain
