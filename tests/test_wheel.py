"""A wheel holds all that a run needs: modules, recipes, console scripts, and its version."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SOURCES = ("pyproject.toml", "setup.py", "requirements.txt", "README.md", "LICENSE")

pytestmark = pytest.mark.slow


def run(*command, cwd, **environment):
    dropped = ("PYTHONPATH",)
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(
        command, cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder with the installed wheel, which was built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        (folder / "source").mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / "source")
    for name in ("ddm_jax", "configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=ignored)
    build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", folder, folder / "source")
    run(sys.executable, *build, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    install = ("-m", "pip", "install", "--no-deps", "--no-index", "--target", folder / "site")
    run(sys.executable, *install, wheel, cwd=folder)
    return folder / "site"


def test_version_is_that_of_the_project(site, tmp_path):
    code = "import ddm_jax; print(ddm_jax.__file__, ddm_jax.__version__)"
    file, version = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site)).split()
    assert Path(file).is_relative_to(site)
    assert version == PROJECT["version"]


def test_missing_extra_is_installed_by_its_requirements(site, tmp_path):
    code = "from ddm_jax.errors import how_to_install; print(how_to_install('hf'))"
    command = run(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site)).split("'")
    assert command[0::2] == ["pip install ", "\n"]
    (wanted,) = PROJECT["optional-dependencies"]["hf"]
    assert Requirement(command[1]) == Requirement(wanted)


def test_all_scripts_and_files_are_there(site):
    assert set(PROJECT["scripts"]) <= {path.name for path in (site / "bin").iterdir()}
    for source, installed in (("ddm_jax", "ddm_jax"), ("configs", "ddm_jax/configs")):
        files = [path for path in (ROOT / source).rglob("*.*") if "__pycache__" not in path.parts]
        names = [path.relative_to(ROOT / source) for path in files]
        assert not [name for name in names if not (site / installed / name).exists()]


def test_script_trains_a_shipped_recipe_in_an_empty_folder(site, tmp_path):
    """Of a recipe that builds on another one, and beside a folder `configs` of the user."""
    (tmp_path / "configs").mkdir()
    lines = "".join(json.dumps({"text": f"{i} bottles of beer " * 4}) + "\n" for i in range(100))
    (tmp_path / "text.jsonl").write_text(lines)
    fields = {
        "data.source": "jsonl:text.jsonl",
        "data.tokenizer": "bytes",
        "data.length": 32,
        "data.validation_fraction": 0.2,
        "data.root": "prepared",
        "model.width": 32,
        "model.depth": 1,
        "train.steps": 2,
        "eval.sequences": 16,
        "sampler.steps": 4,
    }
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    train = (site / "bin" / "ddm-train", "--config=ar_tiny", "--workdir=run", "--json", *flags)
    output = run(*train, cwd=tmp_path, PYTHONPATH=str(site))
    result = json.loads(output.splitlines()[-1])
    assert result["step"] == 2
    assert result["finished"]
