"""Starts n processes of a command on this machine, as a pod would on n machines.

    python launch/local.py --processes=2 --devices=4 -- \
        python -m ddm_jax.main --config=configs/radd_tiny.py --workdir=/tmp/radd

Every process runs the same command with JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
JAX_PROCESS_ID set; with --devices each has that many virtual CPU devices. It needs only Python, and
can be imported: `run` starts the processes and waits; `started` and `wait` are its two halves.
"""

import argparse
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"
# exit codes of a process that a signal has stopped; ddm_jax saves a checkpoint first
STOPPED = (128 + signal.SIGINT, 128 + signal.SIGTERM)
GRACE = 30.0  # seconds that the others have to end by themselves once one has failed
_POLL = 0.05
_LAST_LINES = 20


@dataclass(frozen=True)
class Process:
    """One of the processes: its number, its handle, and its output file (None: it is shown)."""

    index: int
    handle: subprocess.Popen
    log: Path | None


@dataclass(frozen=True)
class Ended:
    """How the processes ended.

    Attributes:
      codes: exit code of each process (128 + n for signal n).
      failed: the process that was the first to end with a code other than 0; None if all are 0.
    """

    codes: tuple[int, ...]
    failed: int | None

    @property
    def code(self) -> int:
        """The exit code of the group: that of the process that failed first, else 0."""
        return 0 if self.failed is None else self.codes[self.failed]


def environment(index: int, processes: int, address: str, devices: int | None) -> dict[str, str]:
    """The variables that process `index` gets in addition to those of this process.

    Args:
      index: from 0 to processes - 1.
      processes: number of processes.
      address: host:port where process 0 is the coordinator.
      devices: virtual CPU devices of each process; None for the devices of the machine.
    """
    variables = {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
        "PYTHONUNBUFFERED": "1",  # no buffering, although the output goes to a file
    }
    if devices is not None:
        flag = "--xla_force_host_platform_device_count"
        others = re.sub(rf"{flag}=\d+", "", os.environ.get("XLA_FLAGS", "")).split()
        variables |= {"XLA_FLAGS": " ".join([*others, f"{flag}={devices}"]), "JAX_PLATFORMS": "cpu"}
    return variables


def run(
    command: Sequence[str],
    processes: int,
    devices: int | None = None,
    *,
    grace: float = GRACE,
    **how,
) -> Ended:
    """Runs a command in n processes and waits until all have ended: `started`, then `wait`."""
    with started(command, processes, devices, **how) as group:
        return wait(group, grace)


@contextmanager
def started(
    command: Sequence[str],
    processes: int,
    devices: int | None = None,
    *,
    logs: Path | None = None,
    show: bool = True,
    port: int | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[list[Process]]:
    """Starts the processes; kills those that still run at the end of the block.

    In the main thread, SIGINT and SIGTERM are passed on to them, so that they can save; a third
    signal kills them.

    Args:
      command: the program and its arguments.
      processes: number of processes.
      devices: virtual CPU devices of each process; None for the devices of the machine.
      logs: folder for `process_K.log`; a new temporary folder by default.
      show: process 0 writes to the output of this process; if False, to a file as the others.
      port: of the coordinator, on this machine; a free one by default.
      variables: further environment variables of all processes.

    Raises:
      OSError: the command does not exist, or the logs cannot be written.
    """
    folder = Path(tempfile.mkdtemp(prefix="ddm_local_")) if logs is None else Path(logs)
    folder.mkdir(parents=True, exist_ok=True)
    group: list[Process] = []
    with _free_port(port) as chosen, _forwarded(group):
        try:
            for index in range(processes):
                log = None if show and index == 0 else folder / f"process_{index}.log"
                env = {**os.environ, **(variables or {})}
                env |= environment(index, processes, f"{HOST}:{chosen}", devices)
                group.append(Process(index, _popen(command, env, log), log))
            yield group
        finally:
            _kill([p for p in group if p.handle.poll() is None])


def wait(group: Sequence[Process], grace: float = GRACE) -> Ended:
    """Waits until all processes have ended; kills what an ended process left running.

    Once one has failed, the others have `grace` seconds to end by themselves; then they receive
    SIGTERM and, after the same time again, SIGKILL.
    """
    running, failed, since, terminated = list(group), None, 0.0, False
    while running:
        ended = [p for p in running if p.handle.poll() is not None]
        _kill(ended)
        running = [p for p in running if p not in ended]
        if failed is None:
            # of several that failed between two polls, the one with the lowest number
            failed = next((p.index for p in ended if p.handle.returncode), None)
            since = time.monotonic()
        elif not terminated and time.monotonic() - since > grace:
            terminated = True
            _send(running, signal.SIGTERM)
        elif terminated and time.monotonic() - since > 2 * grace:
            _kill(running)
        if running:
            time.sleep(_POLL)
    return Ended(tuple(_exit_code(p) for p in group), failed)


def _popen(command: Sequence[str], env: Mapping[str, str], log: Path | None) -> subprocess.Popen:
    with open(log, "wb") if log else nullcontext() as file:
        return subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT if log else None,
            # Ctrl-C reaches them once, through this process, and not from the terminal as well
            start_new_session=True,
        )


def _exit_code(process: Process) -> int:
    code = process.handle.returncode
    return 128 - code if code < 0 else code


def _send(group: Sequence[Process], which: int) -> None:
    for process in group:
        if process.handle.poll() is None:
            process.handle.send_signal(which)


def _kill(group: Sequence[Process]) -> None:
    """Kills the processes and all that they started, and waits for them."""
    for process in group:
        with suppress(ProcessLookupError, PermissionError):  # it has ended completely
            os.killpg(process.handle.pid, signal.SIGKILL)
        process.handle.wait()


@contextmanager
def _forwarded(group: Sequence[Process]) -> Iterator[None]:
    """Passes SIGINT and SIGTERM on to the processes; only the main thread can set that up."""
    received = []

    def forward(which: int, _: object) -> None:
        received.append(which)
        _send(group, which if len(received) < 3 else signal.SIGKILL)

    try:
        before = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread
        before = {}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


@contextmanager
def _free_port(port: int | None) -> Iterator[int]:
    """A port that the system gives to no other program while the processes run.

    The socket is bound and never listens, and SO_REUSEPORT lets the coordinator, which sets it too,
    bind the same port.
    """
    if port is not None:
        yield port
        return
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("", 0))
        yield holder.getsockname()[1]


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Starts n processes of a command on this machine, as a pod would.",
        usage="%(prog)s --processes=N [--devices=D] [options] -- COMMAND ...",
    )
    parser.add_argument("--processes", type=int, required=True, help="number of processes")
    parser.add_argument("--devices", type=int, help="virtual CPU devices of each process")
    parser.add_argument("--logs", type=Path, help="folder for the output of processes 1, 2, ...")
    parser.add_argument("--port", type=int, help="port of the coordinator (default: a free one)")
    parser.add_argument(
        "--grace",
        type=float,
        default=GRACE,
        help="seconds that the others have to end once one has failed",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    parser.add_argument(
        "command", nargs=argparse.REMAINDER, help="after --: the program and its arguments"
    )
    args = parser.parse_args(argv)
    if args.command[:1] == ["--"]:
        args.command = args.command[1:]
    if not args.command:
        parser.error("the command is missing: give it after --.")
    for name in ("processes", "devices"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name}={value} is out of range: give a whole number of at least 1.")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    args = _parse(argv)
    if args.dry_run:
        for index in range(args.processes):
            address = f"{HOST}:{args.port or 'PORT'}"
            variables = environment(index, args.processes, address, args.devices)
            words = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
            print(" ".join([*words, shlex.join(args.command)]))
        return 0
    logs = args.logs or Path(tempfile.mkdtemp(prefix="ddm_local_"))
    if args.processes > 1:
        print(f"Process 0 writes here, process K to {logs}/process_K.log.", flush=True)
    try:
        ended = run(
            args.command, args.processes, args.devices, logs=logs, port=args.port, grace=args.grace
        )
    except OSError as error:
        print(f"error: the processes did not start: {error}.", file=sys.stderr)
        return 127
    if ended.failed is not None and ended.code not in STOPPED:
        print(f"Process {ended.failed} failed first, with code {ended.code}.", file=sys.stderr)
        if ended.failed > 0:
            lines = (logs / f"process_{ended.failed}.log").read_text(errors="replace").splitlines()
            print("\n".join(lines[-_LAST_LINES:]), file=sys.stderr)
    return ended.code


if __name__ == "__main__":
    sys.exit(main())
