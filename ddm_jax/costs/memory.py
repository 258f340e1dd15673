"""Memory of devices: whether a program fits, and a sentence where JAX runs out of memory."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import psutil

from ddm_jax.errors import UserError

_CGROUPS, _OWN_CGROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_LONGEST = 120  # characters of what JAX says
_LIMITS = ("memory.max", "memory.limit_in_bytes")  # of cgroups v2 and v1


@dataclass(frozen=True)
class DeviceMemory:
    """Memory that a program of this process can use.

    Attributes:
      total: bytes, in use or not.
      free: bytes that are not in use now, at most; they are an estimate on a host.
      sharing: devices that share it: 1, or all CPU devices of this process.
      host: whether it is that of this machine's CPU.
    """

    total: int
    free: int
    sharing: int = 1
    host: bool = False


def device_memory(devices: Sequence[jax.Device]) -> DeviceMemory | None:
    """The memory of the fullest of these devices of this process; None if it is unknown.

    It counts as unknown on a TPU, whose compiler itself refuses what does not fit.
    """
    if devices[0].platform == "tpu":
        return None
    if devices[0].platform == "cpu":
        try:
            total, free = _host_memory()
        except OSError:  # no /proc
            return None
        return DeviceMemory(total, free, len(devices), host=True)
    found = []
    for device in devices:
        try:
            stats = device.memory_stats() or {}
        except jax.errors.JaxRuntimeError:  # a backend that is not PjRt, such as Pathways
            return None
        if "bytes_limit" not in stats:
            return None
        limit = stats["bytes_limit"]
        found.append(DeviceMemory(limit, limit - stats.get("bytes_in_use", 0)))
    return min(found, key=lambda memory: memory.free)


def check_fits(
    what: str,
    memory_bytes: Mapping[str, int],
    memory: DeviceMemory | None,
    remedy: Callable[[], str],
    warn: Callable[[str], None],
) -> None:
    """Checks that a compiled program fits into the memory of its devices.

    What is not in use now may be more when it is needed: other programs end, and the system can
    reclaim pages. Therefore a program that needs more than that is a warning; only one that needs
    more than all memory is an error.

    Args:
      what: the program, as the subject of a sentence.
      memory_bytes: `peak` of a device, and `arguments`, the part of it that is in use already
        (costs.program).
      memory: of the devices; None if unknown, then nothing is checked.
      remedy: what to do so that it needs less.
      warn: called with one sentence.

    Raises:
      UserError: it cannot fit.
    """
    if memory is None:
        return
    need = memory.sharing * memory_bytes["peak"]
    more = need - memory.sharing * memory_bytes["arguments"]
    if need <= memory.total and more <= memory.free:
        return
    together = f" for {memory.sharing} CPU devices" if memory.sharing > 1 else ""
    subject = f"{what} needs {in_words(need)} of memory{'' if memory.host else ' on each device'}"
    owner = "this machine" if memory.host else "a device"
    sentence = f"{subject}{together}, and {owner} has {in_words(memory.total)}"
    if need > memory.total:
        raise UserError(f"{sentence}: {remedy()}.")
    warn(
        f"Warning: {sentence}, of which {in_words(memory.free)} are free: if it fails, {remedy()}."
    )


@contextlib.contextmanager
def out_of_memory(what: str, remedy: Callable[[], str]) -> Iterator[None]:
    """Turns JAX's errors of memory within the block into one sentence.

    Args:
      what: what runs, as the subject of a sentence.
      remedy: what to do so that it needs less.

    Raises:
      UserError: a device or the compiler has run out of memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if (reason := exhausted(error)) is None:
            raise
        raise UserError(f"{what} ran out of memory ({reason}): {remedy()}.") from error


def exhausted(error: BaseException) -> str | None:
    """What JAX says of the memory that it lacks; None for other errors."""
    if not isinstance(error, jax.errors.JaxRuntimeError):
        return None
    said = re.search(r"RESOURCE_EXHAUSTED: (.*)", str(error))
    if not said:
        return None
    text = said[1].removeprefix("XLA:TPU compile permanent error. ").rstrip(". ")
    text = re.sub(r"\b\d{6,}(?= bytes)", lambda n: f"{int(n[0]):,}", text)
    return text.split(". Exceeded")[0][:_LONGEST]


def lower_batch(size: int) -> str:
    """A remedy of programs whose only size is that of a batch."""
    if size == 1:
        return "use a device with more memory"
    return f"lower the batch size of {size}, for example to {size // 2}"


def in_words(size: float) -> str:
    """Bytes in words, such as 26.7 GB."""
    unit, divisor = ("GB", 1e9) if size >= 1e9 else ("MB", 1e6)
    return f"{size / divisor:,.1f} {unit}"


def _host_memory() -> tuple[int, int]:
    """(total, free) bytes, swap included, within the limits of this process's cgroups.

    The limit of a cgroup is one on memory only: the process may use swap in addition.
    """
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    total = min([memory.total, *_cgroup_limits()]) + swap.total
    return total, min(total, memory.available + swap.free)


def _cgroup_limits() -> Iterator[int]:
    """The limits on memory, in bytes, of the process's cgroups and those that they are in."""
    try:
        lines = _OWN_CGROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = _CGROUPS / controllers
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            for name in _LIMITS:
                with contextlib.suppress(OSError, ValueError):  # "max", or not there
                    yield int((folder / name).read_text())
            if folder == root:
                break
