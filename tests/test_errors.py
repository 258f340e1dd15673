"""The command that installs an extra works from any folder."""

import shlex
from pathlib import Path

from ddm_jax import errors
from ddm_jax.errors import how_to_install

ROOT = Path(__file__).parents[1]


def test_in_the_checkout_and_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert how_to_install("hf") == "pip install -e '.[hf]'"
    monkeypatch.chdir(tmp_path)
    assert shlex.split(how_to_install("hf")) == ["pip", "install", "-e", f"{ROOT}[hf]"]


def test_a_wheel_names_the_requirements_of_the_extra(tmp_path, monkeypatch):
    """tests/test_wheel.py does the same with the metadata of a wheel."""
    monkeypatch.setattr(errors, "_PACKAGE", tmp_path / "site-packages" / "ddm_jax")
    requires = [
        "numpy>=2",
        'datasets<6,>=3; extra == "hf"',
        'gguf<1; extra == "judge"',
        'tokenizers>1; python_version >= "3" and extra == "judge"',
        'other>1; python_version < "3" and extra == "judge"',
    ]
    monkeypatch.setattr(errors.importlib.metadata, "requires", lambda name: requires)
    assert how_to_install("hf") == "pip install 'datasets<6,>=3'"
    assert how_to_install("judge") == "pip install 'gguf<1' 'tokenizers>1'"
