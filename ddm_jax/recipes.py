"""The recipes of the folder `configs`, which a wheel ships as `ddm_jax/configs`."""

import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

_PACKAGE = Path(__file__).resolve().parent
_IN_WHEEL = _PACKAGE / "configs"
# a checkout and an editable install read the folder of the repository
FOLDER = _IN_WHEEL if _IN_WHEEL.is_dir() else _PACKAGE.parent / "configs"


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
