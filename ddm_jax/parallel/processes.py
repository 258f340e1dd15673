"""Several processes of one run: how they find each other, agree on values, and end together.

Each process drives its own devices and all run the same program, so that a process that dies or
hangs leaves the others waiting in a collective forever. JAX notices a death by heartbeats, or by a
broken connection; `Watchdog` notices everything else. Either way a process ends with one sentence
and exit code STALLED, and the same command on all of them resumes from the last checkpoint.
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
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ddm_jax.errors import UserError

# set by the user, they start a run of several processes anywhere
MANUAL_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
STALLED = 3  # exit code of a process that gave up waiting for others
SLOW_FACTOR = 10  # stall timeouts that anything but a step may take, such as compiling, validation
BARRIER_TIMEOUT = 24 * 3600  # one process may prepare data for long while another finds it prepared
SHUTDOWN_SECONDS = 10  # to end together after an error

# in JAX's errors when a collective fails because of another process
_LOST_PROCESS = re.compile(
    r"Gloo|NCCL|Connection|Socket|heartbeat|coordination|UNAVAILABLE|DEADLINE"
)

_label = ""
_exit_lock = threading.Lock()
_abort_handlers: list[Any] = []  # ctypes' functions must outlive the call that installs them


def initialize() -> None:
    """Joins the processes of a run, if the environment describes several.

    Must be called before any device is used. The environment is that of MANUAL_VARIABLES, of a
    Slurm step of several tasks, or of the TPU VMs of Google Cloud and GKE. Otherwise nothing
    happens, at no cost.

    Raises:
      UserError: MANUAL_VARIABLES are incomplete or wrong, or the other processes cannot be found.
    """
    arguments = _initialize_arguments(os.environ)
    if arguments is None:
        return
    # its handler would take SIGTERM from runs.interrupt, which uses `max_over_processes`
    jax.config.update("jax_enable_preemption_service", False)
    _explain_aborts()
    try:
        jax.distributed.initialize(**arguments)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"The processes of this run did not find each other ({_first_line(error)}): start all "
            f"of them within 5 minutes, or set {', '.join(MANUAL_VARIABLES)}."
        ) from error
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        # Only process 0 writes to the cache. If the others do not see its folder, they compile,
        # together on GPUs, what process 0 loads.
        jax.config.update("jax_compilation_cache_dir", None)
    global _label
    _label = f"process {jax.process_index()} of {jax.process_count()}: "


def finalize() -> None:
    """Leaves the run, once all of its processes have come here; does nothing for a single process.

    JAX 0.10 does so at exit, but JAX 0.12 does not: there, processes that are still ending when
    process 0, their coordinator, has gone would be ended with an error.
    """
    if jax.distributed.is_initialized():
        jax.distributed.shutdown()


def require_single_process() -> None:
    """Checks that a command that runs in one process does so.

    Raises:
      UserError: the environment describes several processes.
    """
    if several := multiprocess_variable(os.environ):
        raise UserError(
            f"{several} says that there are several processes, and this command runs in one: start "
            f"it once, without {several}, where the folder of the run can be read."
        )


def multiprocess_variable(environment: Mapping[str, str]) -> str:
    """The environment variable that says there are several processes, or "".

    TPU VMs of several processes may have no such variable.
    """
    if environment.get(MANUAL_VARIABLES[1], "1") != "1":
        return MANUAL_VARIABLES[1]
    if _is_slurm_step(environment):
        return "SLURM_NTASKS"
    hosts = "TPU_WORKER_HOSTNAMES"
    return hosts if "," in environment.get(hosts, "") and _is_tpu_vm(environment) else ""


def is_first() -> bool:
    """Whether this is process 0, the only one that prints progress and writes results."""
    return jax.process_index() == 0


def label() -> str:
    """Prefix of a message: "process 1 of 2: "; "" for a single process or before `initialize`."""
    return _label


def barrier(name: str) -> None:
    """Barrier across processes, with a timeout of one day. `name` must be unique per call.

    It uses no device, since the first collective of CPU devices waits for only 30 s.
    """
    if jax.process_count() == 1:
        return
    import orbax.checkpoint as ocp  # slow to import, and only its barrier is needed

    everyone = set(range(jax.process_count()))
    ocp.multihost.sync_global_processes(name, processes=everyone, timeout=BARRIER_TIMEOUT)


def start_max_over_processes(value: int) -> Array:
    """Starts to compute the largest of the processes' values, int32[], and does not wait for it.

    Every process must call this at the same point of its program.
    """
    return _max_program()(_value_per_device(int(value)))


def max_over_processes(value: int) -> int:
    """The largest of the processes' values; every process must call this at the same point."""
    return int(start_max_over_processes(value)) if jax.process_count() > 1 else int(value)


def is_shared(folder: Path) -> bool:
    """Whether `folder`, local or remote, is the same one on all processes; creates it.

    A file system may show files of another machine late; it has one minute.
    """
    if jax.process_count() == 1:
        return True
    token = max_over_processes(secrets.randbelow(2**31) if is_first() else 0)
    mark = folder / f".seen-by-all-{token}"
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    barrier(f"{mark.name} is written")
    until = time.monotonic() + 60
    while not (seen := mark.exists()) and time.monotonic() < until:
        time.sleep(1)
    seen = not max_over_processes(not seen)
    if is_first():
        mark.unlink()
    return seen


def exit_process(code: int) -> NoReturn:
    """Ends this process after an error that has been printed, together with the others if they end.

    They do if all have the error, such as a wrong config. Otherwise they notice soon.
    """
    if not jax.distributed.is_initialized():
        sys.exit(code)
    _exit_lock.acquire()  # later failures print nothing
    end_now = functools.partial(os._exit, code)
    threading.Timer(SHUTDOWN_SECONDS, end_now).start()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    with contextlib.suppress(Exception):
        jax.distributed.shutdown()
    end_now()


def end_all_processes(error: BaseException) -> None:
    """Ends this process at once if it is one of several: the others cannot continue without it.

    It waits for nothing: one process cannot finish a checkpoint that all are writing, and a
    checkpoint does not exist until it is finished. A UserError is left to the command line.
    """
    if isinstance(error, UserError) or not jax.distributed.is_initialized():
        return
    if isinstance(error, jax.errors.JaxRuntimeError) and _LOST_PROCESS.search(str(error)):
        _end_stalled(f"another process has ended or cannot be reached ({_first_line(error)})")
    traceback.print_exception(error)
    _end_stalled(f"it cannot continue ({type(error).__name__}: {_first_line(error)})")


class Watchdog:
    """Ends the process if no step finishes within `timeout` seconds; only if there are several.

    A thread checks the time. Until the first `step_finished`, and within `slow`, the limit is
    SLOW_FACTOR times as long.
    """

    def __init__(self, timeout: float):
        self._timeout, self._step = timeout, 0
        self._closed = threading.Event()
        self._allow(SLOW_FACTOR * timeout)

    def __enter__(self) -> "Watchdog":
        if jax.process_count() > 1:
            threading.Thread(target=self._check, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._closed.set()

    def step_finished(self, step: int) -> None:
        """Starts the time limit anew after step `step`."""
        self._step = step
        self._allow(self._timeout)

    @contextlib.contextmanager
    def slow(self) -> Iterator[None]:
        """A longer limit within, for anything but a step; after it, the limit of before."""
        _, before = self._deadline
        self._allow(SLOW_FACTOR * self._timeout)
        yield
        self._allow(before)

    def _allow(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds, seconds

    def _check(self) -> None:
        while not self._closed.wait(min(1.0, self._timeout / 10)):
            deadline, seconds = self._deadline
            if time.monotonic() > deadline:
                _end_stalled(
                    f"nothing has happened for {seconds:g} s after step {self._step} "
                    "(--stall_timeout): another process has ended or hangs, or this one does"
                )


def _end_stalled(why: str) -> NoReturn:
    """Prints a sentence and ends the process; only the first thread that calls this prints."""
    _exit_lock.acquire()
    # not through Python's buffer, which a thread that hangs may hold
    os.write(
        2,
        f"\nerror: {label()}{why}; all processes of the run end. Run the same command on each of "
        "them to resume from the last checkpoint.\n".encode(),
    )
    os._exit(STALLED)


def _explain_aborts() -> None:
    """Makes an abort by JAX end with a sentence.

    JAX's own threads abort the process when another one is gone; Python does not notice.
    """
    handler_type = ctypes.CFUNCTYPE(None, ctypes.c_int)
    handler = handler_type(
        lambda _: _end_stalled("JAX has ended it, as said above, because another process is gone")
    )
    _abort_handlers.append(handler)
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, handler_type), ctypes.c_void_p
    libc.signal(signal.SIGABRT, handler)


def _initialize_arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """The arguments of jax.distributed.initialize; None for a single process."""
    if any(environment.get(name) for name in MANUAL_VARIABLES):
        return _manual_arguments(environment)
    if _is_slurm_step(environment):
        # JAX gives a task one GPU, by its number, which is wrong if a node has one task
        one_per_node = re.fullmatch(
            r"1(\(x\d+\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")
        )
        return {"local_device_ids": []} if one_per_node else {}
    return {} if _is_tpu_vm(environment) else None


def _is_slurm_step(environment: Mapping[str, str]) -> bool:
    return _env_int(environment, "SLURM_NTASKS", 1) > 1 and "SLURM_STEP_NODELIST" in environment


def _manual_arguments(environment: Mapping[str, str]) -> dict[str, Any] | None:
    missing = [name for name in MANUAL_VARIABLES if not environment.get(name)]
    if missing:
        raise UserError(
            f"{' and '.join(missing)} must be set too: a run of several processes that is started "
            f"by hand needs all of {', '.join(MANUAL_VARIABLES)}, such as 10.0.0.1:1234, 2 and 0."
        )
    address_name, count_name, number_name = MANUAL_VARIABLES
    address = environment[address_name]
    if not re.fullmatch(r".+:\d+", address):
        raise UserError(f"{address_name}={address} has no port: give HOST:PORT of process 0.")
    count, number = _env_int(environment, count_name, 1), _env_int(environment, number_name, 0)
    if number >= count:
        raise UserError(
            f"{number_name}={number} is not below {count_name}={count}: number the processes from "
            "0."
        )
    if count == 1:
        return None
    return {
        "coordinator_address": address,
        "num_processes": count,
        "process_id": number,
        "cluster_detection_method": "deactivate",
    }


def _env_int(environment: Mapping[str, str], name: str, low: int) -> int:
    text = environment.get(name, str(low))
    if not text.isdigit() or int(text) < low:
        raise UserError(f"{name}={text} is not a number of at least {low}: set it to one.")
    return int(text)


def _is_tpu_vm(environment: Mapping[str, str]) -> bool:
    """Whether this machine has TPUs of Google Cloud, by checks that are fast on any machine."""
    platforms = environment.get("JAX_PLATFORMS", "")
    if (platforms and "tpu" not in platforms) or not importlib.util.find_spec("libtpu"):
        return False
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_NUM_SLICES" in environment:
        return True
    if "TPU_SKIP_MDS_QUERY" in environment:  # set on a single host
        return False
    chips = itertools.chain(Path("/dev").glob("accel[0-9]*"), Path("/dev/vfio").glob("[0-9]*"))
    return next(chips, None) is not None


@functools.cache
def _device_mesh() -> Mesh:
    return Mesh(np.array(jax.devices()), ("device",))


@functools.lru_cache(maxsize=8)
def _value_per_device(value: int) -> Array:
    """int32[devices]: the value of each device's process; cached, since most values are 0."""
    return jax.make_array_from_callback(
        (jax.device_count(),),
        NamedSharding(_device_mesh(), P("device")),
        lambda _: np.full(1, value, np.int32),
    )


@functools.cache
def _max_program() -> Callable[[Array], Array]:
    return jax.jit(jnp.max, out_shardings=NamedSharding(_device_mesh(), P()))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
