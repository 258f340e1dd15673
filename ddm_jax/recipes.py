"""The recipes of the folder `configs`, which a wheel ships as `ddm_jax/configs`."""

import dataclasses
import difflib
import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ddm_jax.config import Config, field_type, resolve
from ddm_jax.errors import UserError

_PACKAGE = Path(__file__).resolve().parent
_IN_WHEEL = _PACKAGE / "configs"
# a checkout and an editable install read the folder of the repository
FOLDER = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent / "configs"


def make_config(
    recipe: str | Path | ConfigDict | Config, overrides: Mapping[str, Any] | None = None
) -> Config:
    """The frozen config of a recipe, for Python; the commands read theirs from --config.

    Args:
      recipe: the name of a shipped recipe or a path, with its argument ("radd_tiny:loss=ao"); or a
        config.
      overrides: field -> value, such as {"train.steps": 200}.

    Raises:
      UserError: there is no such recipe or field, or a value does not fit its field.
    """
    if isinstance(recipe, Config):
        config = ConfigDict(dataclasses.asdict(recipe))
    elif isinstance(recipe, ConfigDict):
        config = recipe.copy_and_resolve_references()
    else:
        config = _read(str(recipe))
    with config.unlocked(), config.ignore_type():
        for field, value in (overrides or {}).items():
            field_type(field)
            config.update_from_flattened_dict({field: value})
    return resolve(config)


def find_recipe(recipe: str) -> Path | None:
    """Finds the file of a recipe: a path that exists, otherwise the shipped recipe of this name.

    Args:
      recipe: a path, or `NAME` or `configs/NAME.py` of a shipped recipe.

    Returns:
      The path of a .py file; None if there is no such recipe.
    """
    path = Path(recipe)
    if path.suffix == ".py" and path.is_file():
        return path
    name = recipe.removeprefix("configs/").removesuffix(".py")
    shipped = FOLDER / f"{name}.py"
    return shipped if name.isidentifier() and shipped.is_file() else None


def similar_recipe(recipe: str) -> str:
    """A shipped recipe whose name is like this one; radd_tiny if there is none."""
    names = sorted(path.stem for path in FOLDER.glob("*.py"))
    return (*difflib.get_close_matches(Path(recipe).stem, names, n=1), "radd_tiny")[0]


def load_recipe(name: str) -> Callable[[str], ConfigDict]:
    """Returns the function `get_config` of a shipped recipe."""
    extend_configs(FOLDER)
    get_config: Callable[[str], ConfigDict] = importlib.import_module(f"configs.{name}").get_config
    return get_config


def extend_configs(folder: Path) -> None:
    """Makes `from configs.NAME import get_config` work, by which recipes build on each other.

    By itself Python finds `configs` only when it starts in the repository.

    Args:
      folder: the folder of a recipe. If it is called `configs`, it is searched before the shipped
        recipes, and after what Python finds by itself.
    """
    try:
        package = importlib.import_module("configs")
    except ModuleNotFoundError:
        package = sys.modules["configs"] = types.ModuleType("configs")
    known = list(getattr(package, "__path__", []))
    more = [str(f) for f in (folder.resolve(), FOLDER) if f.name == "configs"]
    package.__path__ = list(dict.fromkeys([*known, *more]))


def _read(recipe: str) -> ConfigDict:
    """What `get_config` of a recipe returns."""
    name, _, argument = recipe.partition(":")
    file = find_recipe(name)
    if file is None:
        raise UserError(
            f"config={recipe!r} is not a recipe: give the path of a .py file, or the name of a "
            f"recipe that ships with ddm_jax, such as {similar_recipe(name)!r}."
        )
    extend_configs(file.parent)
    spec = importlib.util.spec_from_file_location(f"configs.{file.stem}", file)
    if not spec or not spec.loader:
        raise ImportError(f"{file} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config: ConfigDict = module.get_config(argument) if argument else module.get_config()
    return config
