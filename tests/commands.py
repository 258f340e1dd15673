"""Runs the commands of ddm_jax in forks of one process that has imported them all.

A fork starts in 50 ms, `python -m` in 4 s of imports. No device of JAX has been used before the
fork, so XLA_FLAGS and other variables hold as for a process of its own. `run_for_real` starts
`python -m`; test_commands.py compares the two for every command.
"""

import atexit
import contextlib
import gc
import importlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
MODULES = {
    name: f"ddm_jax.{name}"
    for name in ("main", "sample", "translate", "evaluate", "judge", "prepare", "convert")
} | {name: f"ddm_jax.{name}.__main__" for name in ("compare", "aot")}
# one device, compiled as in tests/conftest.py (XLA_FLAGS="" compiles as users do)
VARIABLES = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
}
EIGHT_DEVICES = {"XLA_FLAGS": f"{VARIABLES['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}
RECIPE = "--config=configs/radd_tiny.py"
LONGEST = 400  # characters of a message, past which nobody reads it
_FORKS = multiprocessing.get_context("forkserver")
# pytest is the main module, which each child imports again; a run imports the last three late
LATE = ("matplotlib.figure", "matplotlib.backends.backend_agg", "tensorboardX")
_FORKS.set_forkserver_preload(["pytest", "tests.commands", *MODULES.values(), *LATE])
_numbers = itertools.count()


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


class Command:
    """A command that runs in a fork; its methods are those of subprocess.Popen."""

    def __init__(self, process: multiprocessing.Process, folder: Path):
        self._process, self._folder = process, folder

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return (self._folder / "stdout").read_text(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has written so far."""
        return (self._folder / "stderr").read_text(errors="replace")

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 600) -> int:
        """Waits for the end and returns the exit code."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"{self._process} runs for more than {timeout} s: {self.stderr}")
        return self._process.exitcode

    def send_signal(self, which: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self._process.pid, which)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def finish(self, code: int = 0) -> Ended:
        """Waits for the end, which must be that of `code`."""
        ended = Ended(self.wait(), self.stdout, self.stderr)
        assert ended.code == code, f"{ended.code}\n{ended.stdout}\n{ended.stderr}"
        return ended


def start(
    command: str,
    *flags: object,
    env: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    stdin: str = "",
    before: Callable[[], None] | None = None,
) -> Command:
    """Starts `python -m ddm_jax.COMMAND FLAGS` in a fork.

    Args:
      command: a name of MODULES.
      flags: the command line after it.
      env: variables on top of VARIABLES and those of this process.
      cwd: the working directory.
      stdin: what the command can read.
      before: a function of a module, which the fork calls before the command.

    Returns:
      The command, which writes to files of its own.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"{command}-", dir=_output_folder()))
    for name, text in (("stdin", stdin), ("stdout", ""), ("stderr", "")):
        (folder / name).write_text(text)
    variables = os.environ | VARIABLES | dict(env or {})
    arguments = (command, [str(flag) for flag in flags], variables, cwd, folder, before)
    process = _FORKS.Process(target=_serve, args=arguments, name=f"{command}-{next(_numbers)}")
    process.start()
    return Command(process, folder)


def run(command: str, *flags: object, code: int | None = None, **options: object) -> Ended:
    """Runs a command in a fork; options: those of `start`; code: the one it must end with."""
    started = start(command, *flags, **options)
    return started.finish(started.wait() if code is None else code)


def run_for_real(command: str, *flags: object, env: Mapping[str, str] | None = None) -> Ended:
    """Runs `python -m ddm_jax.COMMAND FLAGS`."""
    done = subprocess.run(
        [sys.executable, "-m", f"ddm_jax.{command}", *map(str, flags)],
        cwd=ROOT,
        env=os.environ | VARIABLES | dict(env or {}),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def assert_one_sentence(ended: Ended, *parts: str) -> None:
    """It ended with code 2 and one sentence, which has the parts."""
    assert ended.code == 2, ended
    assert ended.stdout == ""
    assert ended.stderr.startswith("error: ")
    assert ended.stderr.endswith((".\n", "?\n"))
    assert ended.stderr.count("\n") == 1
    assert len(ended.stderr) < LONGEST
    for part in parts:
        assert part in ended.stderr


def flags_of(settings: Mapping[str, object]) -> Iterable[str]:
    """--config.FIELD=VALUE of each."""
    return [f"--config.{name}={value}" for name, value in settings.items()]


def _output_folder() -> str:
    """A folder of this process for what its commands write, removed at its end."""
    global _folder
    with contextlib.suppress(NameError):
        return _folder.name
    _folder = tempfile.TemporaryDirectory(prefix="commands-", ignore_cleanup_errors=True)
    return _folder.name


def _serve(
    command: str,
    flags: list[str],
    variables: dict[str, str],
    cwd: Path,
    folder: Path,
    before: Callable[[], None] | None,
) -> None:
    """What the fork does."""
    gc.disable()  # see conftest.py
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        mode = os.O_RDONLY if name == "stdin" else os.O_WRONLY | os.O_APPEND
        os.dup2(os.open(folder / name, mode), number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(cwd)
    # as in a terminal: where the tests run in the background, Ctrl-C is ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    module = importlib.import_module(MODULES[command])
    sys.argv = [module.__file__, *flags]
    if before is not None:
        before()
    try:
        module.cli.run(module.main, module.define_flags)
    finally:
        atexit._run_exitfuncs()
