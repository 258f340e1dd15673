"""A recipe is a path that exists or the name of a shipped one, and imports others anywhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ddm_jax.recipes import FOLDER, find_recipe, load_recipe

ROOT = Path(__file__).parents[1]


def test_recipes_are_those_of_the_repository():
    assert ROOT / "configs" == FOLDER


@pytest.mark.parametrize("recipe", ["radd_tiny", "radd_tiny.py", "configs/radd_tiny.py"])
def test_shipped_recipe_is_found_anywhere(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(recipe) == FOLDER / "radd_tiny.py"


def test_path_that_exists_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mine = Path("configs/radd_tiny.py")
    mine.parent.mkdir()
    mine.touch()
    assert find_recipe("configs/radd_tiny.py") == mine
    assert find_recipe("radd_tiny") == FOLDER / "radd_tiny.py"


@pytest.mark.parametrize(
    "recipe", ["", ".", "nope", "configs", "configs/", "mine/radd_tiny.py", "../configs/radd_tiny"]
)
def test_anything_else_is_not_found(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(recipe) is None


def test_shipped_recipe_is_loaded_by_its_name():
    assert load_recipe("radd_medium")("loss=ao").objective.name == "radd_ao"


@pytest.mark.parametrize("flags", [["-P"], []], ids=["console script", "python -m"])
def test_recipes_of_the_user_build_on_their_own_and_on_shipped_ones(tmp_path, flags):
    """`python -m` searches the current folder for modules, a console script (-P) does not."""
    for folder in ("site", "configs"):
        (tmp_path / folder).mkdir()
    (tmp_path / "site" / "ddm_jax").symlink_to(ROOT / "ddm_jax")
    (tmp_path / "configs" / "base.py").write_text("from configs.ar_tiny import get_config\n")
    (tmp_path / "configs" / "mine.py").write_text("from configs.base import get_config\n")
    code = (
        "import runpy, pathlib, ddm_jax.recipes as recipes;"
        "recipes.extend_configs(pathlib.Path('configs'));"
        "print(runpy.run_path('configs/mine.py')['get_config']().objective.name)"
    )
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "ar\n", done.stderr
