"""The commands keep compiled programs, unless the environment variable of jax decides."""

import pwd
from pathlib import Path

import jax
import pytest

from ddm_jax import compile_cache
from ddm_jax.compile_cache import VARIABLE, keep_compiled_programs
from ddm_jax.parallel import processes

NAMES = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_compilation_cache_max_size",
)


@pytest.fixture
def updates(monkeypatch, tmp_path):
    """What is set in jax.config, with a home directory that is tmp_path."""
    found = {}
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setattr(jax.config, "update", found.__setitem__)
    return found


def test_folder_in_the_home_directory(updates, tmp_path):
    keep_compiled_programs()
    folder = Path(updates["jax_compilation_cache_dir"])
    assert folder.is_dir()
    assert folder.parent == tmp_path / ".cache" / "ddm_jax" / "compiled"
    assert set(updates) == set(NAMES)


@pytest.mark.parametrize("value", ["", "/somewhere"])
def test_variable_of_jax_decides(updates, monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    keep_compiled_programs()
    assert not updates


def test_home_that_cannot_be_written(updates, tmp_path):
    (tmp_path / ".cache").touch()
    keep_compiled_programs()
    assert not updates


def test_user_without_a_home(updates, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # as for an id without an entry
    keep_compiled_programs()
    assert not updates


def test_other_instructions_have_another_folder(monkeypatch):
    names = set()
    for flags in ("flags\t\t: avx avx2\n", "flags\t\t: avx\n", "Features\t: asimd\n"):
        monkeypatch.setattr(Path, "read_text", lambda self, encoding, flags=flags: flags)
        names.add(compile_cache._kind_of_cpu())
    assert len(names) == 3


@pytest.mark.parametrize("shared", ["", "/shared"])
def test_several_processes_share_a_folder_or_have_none(updates, monkeypatch, shared):
    for name, value in zip(processes.MANUAL_VARIABLES, ("10.0.0.1:12", "2", "0"), strict=True):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: None)
    monkeypatch.setattr(processes, "_explain_aborts", lambda: None)
    monkeypatch.setattr(processes, "_label", "")
    if shared:
        monkeypatch.setenv(VARIABLE, shared)
    keep_compiled_programs()
    processes.initialize()
    assert updates.get("jax_compilation_cache_dir", "not set") == ("not set" if shared else None)
