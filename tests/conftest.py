"""What every test shares: eight CPU devices, the oracle loader, a float64 switch, and runs.

Sets and runs are made once in a test session, by the first of its processes that asks. Tests read
them; a test that would change one works on a copy.
"""

import fcntl
import gc
import getpass
import importlib.util
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# before jax is imported: it reads both only once
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# A test compiles far longer than it computes. A train step of one layer compiles in 4.0 s of CPU
# without the last two flags and in 1.3 s with them; jaxlib 0.12 accepts both.
FLAGS = {
    "xla_force_host_platform_device_count": 8,
    "xla_backend_optimization_level": 0,
    "xla_backend_extra_options": "xla_cpu_disable_new_fusion_emitters",
    "xla_cpu_parallel_codegen_split_count": 1,
}
for _flag, _value in FLAGS.items():
    if _flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{_flag}={_value}"
# what one process has compiled, the others of this machine need not, nor the next run
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": f"{tempfile.gettempdir()}/ddm_jax_tests-{getpass.getuser()}",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
for _name, _setting in CACHE.items():
    os.environ.setdefault(_name, _setting)

import jax
import pytest

# Tracing and lowering make many objects that live on; to look through them again and again took a
# quarter of that time.
gc.freeze()
gc.set_threshold(50_000, 20, 50)

if TYPE_CHECKING:
    from ddm_jax.data.sets.text import PreparedText


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


@pytest.fixture
def one_device() -> Iterator[None]:
    """The test sees one device."""
    from tests.devices import only_one_device

    with only_one_device():
        yield


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """make_once(name, make) -> the folder `name` of all test processes, filled by make(folder)."""
    root = tmp_path_factory.getbasetemp()
    root = root.parent if "PYTEST_XDIST_WORKER" in os.environ else root

    def once(name: str, make: Callable[[Path], object]) -> Path:
        folder, finished = root / name, root / f"{name}.finished"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not finished.exists():
                folder.mkdir()
                make(folder)
                finished.touch()
        return folder

    return once


@pytest.fixture(scope="session")
def letters_set(make_once: Callable) -> "PreparedText":
    """Forty short texts, prepared as bytes."""
    from ddm_jax.data.sets.text import open_text
    from tests.letters import prepare_letters

    return open_text(make_once("letters_set", prepare_letters) / "set")


@pytest.fixture(scope="session")
def letters_run(make_once: Callable, letters_set: "PreparedText") -> Path:
    """A run that says b at step 2 and a, in its newest checkpoint, at step 10."""
    from tests.letters import make_run

    return make_once("letters_run", lambda to: make_run(to, letters_set, {2: "b", 10: "a"}))


@pytest.fixture(scope="session")
def trained_run(make_once: Callable) -> Path:
    """A language model after 40 steps on forty short texts, trained by `ddm_jax.train`."""
    from tests.trained import train_on_texts

    return make_once("trained", train_on_texts) / "run"


@pytest.fixture(scope="session")
def pairs_run(make_once: Callable) -> Path:
    """A translator of few words after 6 steps, and next to it the files of its pairs."""
    from tests.pairs_run import train_on_pairs

    return make_once("pairs", train_on_pairs) / "run"
