"""config.plugins: modules of the user that add rows to the tables (docs/plugins.md).

A module adds rows by tables of its own: `OBJECTIVES = {"mine": Objective(...)}`. All of them are
checked before one is added.
"""

import dataclasses
import importlib
import importlib.util
import sys
import traceback
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ddm_jax.errors import UserError


class Table(NamedTuple):
    """A table that plug-ins may add to; its module is imported only if there is a plug-in.

    Attributes:
      module: that has the table.
      options: attributes of a row that name options -> the section of the config that has them.
    """

    module: str
    options: Mapping[str, str] = {}


TABLES = {
    "OBJECTIVES": Table(
        "ddm_jax.objectives", {"options": "objective", "init_options": "objective"}
    ),
    "SAMPLERS": Table("ddm_jax.samplers", {"options": "sampler", "trained_options": "objective"}),
    "PROCESSES": Table("ddm_jax.diffusion.processes", {"options": "process"}),
    "SCHEDULES": Table("ddm_jax.diffusion.schedules", {"options": "schedule"}),
    "LAYOUTS": Table("ddm_jax.parallel.layouts"),
}
_loaded: dict[Path, ModuleType] = {}


def load_plugins(names: Sequence[str], config: type) -> tuple[str, ...]:
    """Imports plug-ins and adds their rows to the tables; those that are loaded already stay.

    Args:
      names: modules that Python finds, or paths of .py files. Relative ones start from the current
        folder. Commas within a name separate several.
      config: the dataclass of the config, which has the sections of the options.

    Returns:
      The paths of the files, absolute, so that a record of them can be read from another folder.

    Raises:
      UserError: a plug-in cannot be found or imported, has no table, or a row is taken or wrong.
    """
    paths = [_find(name.strip()) for part in names for name in part.split(",") if name.strip()]
    for path in paths:
        if path not in _loaded:
            module = _import(path)
            _add_rows(module, path, config)
            _loaded[path] = module
    return tuple(map(str, dict.fromkeys(paths)))


def _find(name: str) -> Path:
    """The file of a plug-in."""
    path = Path(name).expanduser()
    if path.suffix != ".py":
        path = Path(f"{name.replace('.', '/')}.py")
        if not path.is_file():
            path = _file_of_module(name)
    if not path.is_file():
        raise UserError(
            f"config.plugins={name!r} is not found: give a .py file that exists (relative paths "
            f"start from {Path.cwd()}), or a module that Python can import."
        )
    return path.resolve()


def _file_of_module(name: str) -> Path:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    return Path(spec.origin if spec and spec.origin else f"{name}.py")


def _import(path: Path) -> ModuleType:
    """The module of a file, whose neighbours it can import."""
    root, name = path.parent, path.stem
    if name == "__init__":
        root, name = root.parent, root.name
    while (root / "__init__.py").is_file():
        root, name = root.parent, f"{root.name}.{name}"
    if str(root) not in sys.path:
        sys.path.append(str(root))
    try:
        module = importlib.import_module(name)
    except UserError:
        raise
    except Exception as error:
        own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        where = f", line {own[-1].lineno}" if own else ""
        raise UserError(
            f"config.plugins: {path}{where} cannot be imported "
            f"({type(error).__name__}: {' '.join(str(error).split())}): correct it."
        ) from error
    if Path(module.__file__ or "").resolve() != path:
        raise UserError(
            f"config.plugins: {path} has the name of another module, {module.__file__}: give the "
            "file another name."
        )
    return module


def _add_rows(module: ModuleType, path: Path, config: type) -> None:
    """Checks all rows of a plug-in, then adds them."""
    tables = {
        name: (importlib.import_module(table.module).__dict__[name], table)
        for name, table in TABLES.items()
        if isinstance(getattr(module, name, None), dict)
    }
    own = {name for name, (rows, _) in tables.items() if getattr(module, name) is not rows}
    if not own:
        raise UserError(
            f"config.plugins: {path} has no table of its own: define one of {', '.join(TABLES)}, "
            "such as OBJECTIVES = {'mine': Objective(...)}."
        )
    for name in own:
        ours, table = tables[name]
        for key, row in getattr(module, name).items():
            where = f"config.plugins: {name}[{key!r}] of {path}"
            if key in ours:
                raise UserError(f"{where} is taken: give it another name.")
            kind = type(next(iter(ours.values())))
            if not isinstance(row, kind):
                raise UserError(f"{where} is not of the type {kind.__name__}: see {table.module}.")
            _check_options(row, table, config, where)
    for name in own:
        tables[name][0].update(getattr(module, name))


def _check_options(row: Any, table: Table, config: type, where: str) -> None:
    """Options of a row are fields of the config that are empty by default."""
    for attribute, section in table.options.items():
        fields = dataclasses.fields(typing.get_type_hints(config)[section])
        possible = [f.name for f in fields if f.default is None]
        for option in getattr(row, attribute):
            if option.name not in possible:
                raise UserError(
                    f"{where} names the option {option.name!r}, which config.{section} does not "
                    f"have: use one of {', '.join(possible)}, or a constant in the module."
                )
