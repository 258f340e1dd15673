"""Several processes, one run: how they find each other, agree, and end together.

Each process drives its own devices and all run the same program, so that a process that dies or
hangs leaves the others waiting in a collective, without end. JAX hears of a death by heartbeats, or
by a connection that breaks; `Watch` hears of everything else. Either way a process ends with one
sentence and code STALLED, and the same command on all of them goes on from the last checkpoint.
"""

import contextlib
import ctypes
import functools
import importlib.util
import itertools
import os
import re
import secrets
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ddm_jax.errors import UserError

BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
STALLED = 3  # exit code of a process that gave up waiting for others
SLOW = 10  # what is no step, such as compiling or validation, may take so many stall timeouts
_DAY = 24 * 3600  # one process may prepare data for long while another has found it prepared
_GOODBYE = 10  # seconds to end together after an error

_label = ""
_ending = threading.Lock()
_abort_handlers: list[Any] = []  # ctypes' functions must outlive the call that installs them


def initialize() -> None:
    """Joins the processes of a run, if the environment tells of several; before any device is used.

    By hand through BY_HAND; from Slurm within a step of several tasks; on the TPU VMs of Google
    Cloud and of GKE. Otherwise nothing happens, at no cost.

    Raises:
      UserError: BY_HAND is incomplete or wrong, or the others cannot be found.
    """
    arguments = _detected(os.environ)
    if arguments is None:
        return
    # its handler would take SIGTERM from runs.interrupt, which uses `max_over_processes`
    jax.config.update("jax_enable_preemption_service", False)
    _say_a_sentence_on_abort()
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The processes of this run did not find each other ({_first_line(error)}): start all "
            f"of them within 5 minutes, or set {', '.join(BY_HAND)}."
        ) from error
    global _label
    _label = f"process {jax.process_index()} of {jax.process_count()}: "


def require_single_process() -> None:
    """For a command that runs in one process.

    Raises:
      UserError: the environment tells of several.
    """
    if several := multiprocess_variable(os.environ):
        raise UserError(
            f"{several} says that there are several processes, and this command runs in one: start "
            f"it once, without {several}, where the folder of the run can be read."
        )


def multiprocess_variable(environment: Mapping[str, str]) -> str:
    """The variable that tells of several processes, or nothing; a TPU VM may have no such one."""
    if environment.get(BY_HAND[1], "1") != "1":
        return BY_HAND[1]
    if _is_slurm_step(environment):
        return "SLURM_NTASKS"
    hosts = "TPU_WORKER_HOSTNAMES"
    return hosts if "," in environment.get(hosts, "") and _is_tpu_vm(environment) else ""


def is_first() -> bool:
    """Whether this is process 0, which alone prints progress and writes results."""
    return jax.process_index() == 0


def label() -> str:
    """Who speaks: "process 1 of 2: ", or nothing where it is alone, or not known yet."""
    return _label


def barrier(name: str) -> None:
    """Waits until every process is here, a day at most; name: another one at every meeting.

    This needs no device: the first collective of CPU devices waits for 30 s only.
    """
    if jax.process_count() == 1:
        return
    import orbax.checkpoint as ocp  # slow to import, and its barrier is needed here alone

    everyone = set(range(jax.process_count()))
    ocp.multihost.sync_global_processes(name, processes=everyone, timeout=_DAY)


def start_max_over_processes(value: int) -> Array:
    """int32[]: the largest of the values that the processes give; does not wait for it.

    Every process must call this at the same point of its program.
    """
    return _program()(_own(int(value)))


def max_over_processes(value: int) -> int:
    """The same, and waits."""
    return int(start_max_over_processes(value)) if jax.process_count() > 1 else int(value)


def all_see(folder: Path) -> bool:
    """Whether `folder`, a local or remote one, is the same on all processes; it is made.

    A file system may show late what another machine has written: it has a minute.
    """
    if jax.process_count() == 1:
        return True
    token = max_over_processes(secrets.randbelow(2**31) if is_first() else 0)
    mark = folder / f".seen-by-all-{token}"
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    barrier(f"{mark.name} is there")
    until = time.monotonic() + 60
    while not (seen := mark.exists()) and time.monotonic() < until:
        time.sleep(1)
    seen = not max_over_processes(not seen)
    if is_first():
        mark.unlink()
    return seen


def exit_process(code: int) -> NoReturn:
    """Ends this process after an error that has been printed, with the others if they end too.

    They do where the error is everybody's, such as a wrong config. Otherwise they notice soon.
    """
    if not jax.distributed.is_initialized():
        sys.exit(code)
    _ending.acquire()  # what breaks from here on needs no sentence of its own
    end_now = functools.partial(os._exit, code)
    threading.Timer(_GOODBYE, end_now).start()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with contextlib.suppress(Exception):
        jax.distributed.shutdown()
    end_now()


def end_all_processes(error: BaseException) -> None:
    """Ends this process at once if it is one of several, since no other can go on without it.

    Nothing is waited for: a checkpoint that is being written cannot be finished by one process
    alone, and is not there until it is finished. A UserError is left to the command line.
    """
    if isinstance(error, UserError) or not jax.distributed.is_initialized():
        return
    if isinstance(error, jax.errors.JaxRuntimeError) and _LOST.search(str(error)):
        _end(f"another process has ended or cannot be reached ({_first_line(error)})")
    traceback.print_exception(error)
    _end(f"it cannot go on ({type(error).__name__}: {_first_line(error)})")


class Watch:
    """Ends the process if no step is finished for `timeout` seconds; only where there are several.

    A thread looks at the clock. Until the first `beat`, and within `slow`, the limit is SLOW times
    as long.
    """

    def __init__(self, timeout: float):
        self._timeout, self._step = timeout, 0
        self._left = threading.Event()
        self._allow(SLOW * timeout)

    def __enter__(self) -> "Watch":
        if jax.process_count() > 1:
            threading.Thread(target=self._look, name="watch", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._left.set()

    def beat(self, step: int) -> None:
        """Step `step` is finished."""
        self._step = step
        self._allow(self._timeout)

    @contextlib.contextmanager
    def slow(self) -> Iterator[None]:
        """What happens within is no step and may take longer."""
        self._allow(SLOW * self._timeout)
        yield
        self._allow(self._timeout)

    def _allow(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds, seconds

    def _look(self) -> None:
        while not self._left.wait(min(1.0, self._timeout / 10)):
            deadline, seconds = self._deadline
            if time.monotonic() > deadline:
                _end(
                    f"nothing has happened for {seconds:g} s after step {self._step} "
                    "(--stall_timeout): another process has ended or hangs, or this one does"
                )


# what JAX's errors say where a collective fails because of another process
_LOST = re.compile(r"Gloo|NCCL|Connection|Socket|heartbeat|coordination|UNAVAILABLE|DEADLINE")


def _end(why: str) -> NoReturn:
    """Prints a sentence and ends the process; the first thread that comes decides."""
    _ending.acquire()
    # not through Python's buffer, which a thread that hangs may hold
    os.write(
        2,
        f"\nerror: {label()}{why}; all processes of the run end, and the same command on each of "
        "them goes on from the last checkpoint.\n".encode(),
    )
    os._exit(STALLED)


def _say_a_sentence_on_abort() -> None:
    """JAX's own threads abort the process when another one is gone, where Python hears nothing."""
    kind = ctypes.CFUNCTYPE(None, ctypes.c_int)
    handler = kind(
        lambda _: _end("JAX has ended it, as said above, because another process is gone")
    )
    _abort_handlers.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, kind), ctypes.c_void_p
    libc.signal(signal.SIGABRT, handler)


def _detected(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The arguments of jax.distributed.initialize; None where there is one process."""
    if any(environment.get(name) for name in BY_HAND):
        return _by_hand(environment)
    if _is_slurm_step(environment):
        # JAX gives a task the one GPU of its number, which is wrong where a node has one task
        alone = re.fullmatch(r"1(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
        return {"local_device_ids": []} if alone else {}
    return {} if _is_tpu_vm(environment) else None


def _is_slurm_step(environment: Mapping[str, str]) -> bool:
    return _number(environment, "SLURM_NTASKS", 1) > 1 and "SLURM_STEP_NODELIST" in environment


def _by_hand(environment: Mapping[str, str]) -> dict[str, Any] | None:
    missing = [name for name in BY_HAND if not environment.get(name)]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} must be set too: a run of several processes that is started "
            f"by hand needs all of {', '.join(BY_HAND)}, such as 10.0.0.1:1234, 2 and 0."
        )
    address, count, number = (environment[name] for name in BY_HAND)
    if not re.fullmatch(r".+:\d+", address):
        raise UserError(f"{BY_HAND[0]}={address} has no port: give HOST:PORT of process 0.")
    count, number = _number(environment, BY_HAND[1], 1), _number(environment, BY_HAND[2], 0)
    if number >= count:
        raise UserError(
            f"{BY_HAND[2]}={number} is not below {BY_HAND[1]}={count}: number the processes from 0."
        )
    if count == 1:
        return None
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": number,
        "cluster_detection_method": "deactivate",
    }


def _number(environment: Mapping[str, str], name: str, low: int) -> int:
    text = environment.get(name, str(low))
    if not text.isdigit() or int(text) < low:
        raise UserError(f"{name}={text} is not a number of at least {low}: set it to one.")
    return int(text)


def _is_tpu_vm(environment: Mapping[str, str]) -> bool:
    """Whether TPUs of Google Cloud are here, by signs that cost nothing on any other machine."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if (platforms and "tpu" not in platforms) or not importlib.util.find_spec("libtpu"):
        return False
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_NUM_SLICES" in environment:
        return True
    if "TPU_SKIP_MDS_QUERY" in environment:  # one host, which says so
        return False
    chips = itertools.chain(Path("/dev").glob("accel[0-9]*"), Path("/dev/vfio").glob("[0-9]*"))
    return next(chips, None) is not None


@functools.cache
def _mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), ("device",))


@functools.lru_cache(maxsize=8)
def _own(value: int) -> Array:
    """int32[devices]: the value of each device's process; kept, since most values are 0."""
    return jax.make_array_from_callback(
        (jax.device_count(),),
        NamedSharding(_mesh(), P("device")),
        lambda _: np.full(1, value, np.int32),
    )


@functools.cache
def _program() -> Any:
    return jax.jit(jnp.max, out_shardings=NamedSharding(_mesh(), P()))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
