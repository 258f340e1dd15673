"""What every test shares: eight CPU devices, the oracle loader, and a float64 switch."""

import getpass
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# before jax is imported: it reads both only once
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# a test compiles far longer than it computes; subprocesses that a test starts compile as users do
FLAGS = {"xla_force_host_platform_device_count": 8, "xla_backend_optimization_level": 0}
for _flag, _value in FLAGS.items():
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{_flag}={_value}"
# what one process has compiled, the others of this machine need not, nor the next run
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": f"{tempfile.gettempdir()}/ddm_jax_tests-{getpass.getuser()}",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
}
for _name, _setting in CACHE.items():
    os.environ.setdefault(_name, _setting)

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_end() -> Iterator[None]:
    """Programs of a module are freed after it: those of all took 7 GB and the maps of a process."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def oracle() -> Callable:
    """`oracle(ref, case) -> (arrays, record)`; skips the test where there is no such file."""
    # by path: with --import-mode=importlib the tests are not on sys.path
    spec = importlib.util.spec_from_file_location("oracle", Path(__file__).with_name("oracle.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load


@pytest.fixture
def float64() -> Iterator[None]:
    """Runs the test with 64-bit types in jax."""
    with jax.enable_x64(True):
        yield
