"""Programs that do not fit are refused, those that may fit are not, and JAX's errors are read."""

import dataclasses
import os
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import psutil
import pytest

from ddm_jax.costs import memory
from ddm_jax.costs.memory import DeviceMemory, check_fits, device_memory, out_of_memory
from ddm_jax.errors import UserError

GB = 10**9
NEEDS = {"peak": 20 * GB, "arguments": 5 * GB}


def said(found):
    """The warnings of a program that needs 20 GB, of which 5 are in use already."""
    warnings = []
    check_fits("The step", NEEDS, found, lambda: "set a=1", warnings.append)
    return warnings


@pytest.mark.parametrize(
    "found",
    [None, DeviceMemory(20 * GB, 15 * GB), DeviceMemory(40 * GB, 30 * GB, sharing=2, host=True)],
)
def test_program_that_fits_exactly_is_accepted(found):
    assert not said(found)


def test_program_that_may_fit_is_a_warning():
    assert said(DeviceMemory(20 * GB, 15 * GB - 1)) == [
        "Warning: The step needs 20.0 GB of memory on each device, and a device has 20.0 GB, of "
        "which 15.0 GB are free: if it fails, set a=1."
    ]


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        (
            DeviceMemory(16 * GB, 16 * GB),
            "The step needs 20.0 GB of memory on each device, and a device has 16.0 GB: set a=1.",
        ),
        (
            DeviceMemory(16 * GB, 16 * GB, host=True),
            "The step needs 20.0 GB of memory, and this machine has 16.0 GB: set a=1.",
        ),
        (
            DeviceMemory(30 * GB, 30 * GB, sharing=8, host=True),
            "The step needs 160.0 GB of memory for 8 CPU devices, and this machine has 30.0 GB: "
            "set a=1.",
        ),
    ],
)
def test_program_that_cannot_fit_is_refused(found, sentence):
    with pytest.raises(UserError) as raised:
        said(found)
    assert str(raised.value) == sentence


def test_cpu_devices_share_the_memory_of_the_machine():
    found = device_memory(jax.devices())
    assert (found.sharing, found.host) == (jax.device_count(), True)
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < found.free <= found.total <= physical + psutil.swap_memory().total


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """Stands in for jax.Device."""

    stats: dict | None
    platform: str = "gpu"

    def memory_stats(self):
        return self.stats


def test_fullest_accelerator_counts():
    empty, full = ({"bytes_limit": 80, "bytes_in_use": used} for used in (10, 70))
    assert device_memory([FakeDevice(empty), FakeDevice(full)]) == DeviceMemory(80, 10)
    assert device_memory([FakeDevice(empty), FakeDevice(None)]) is None
    assert device_memory([FakeDevice({"bytes_in_use": 3})]) is None
    assert device_memory([FakeDevice(empty, platform="tpu")]) is None  # its compiler refuses


def test_memory_that_cannot_be_asked_for_is_unknown(monkeypatch):
    def fails(*_):
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", fails)
    assert device_memory(jax.devices()) is None

    def unsupported(_):
        raise jax.errors.JaxRuntimeError("INVALID_ARGUMENT: only for PjRt devices")

    monkeypatch.setattr(FakeDevice, "memory_stats", unsupported)
    assert device_memory([FakeDevice(None)]) is None


@pytest.mark.parametrize(
    ("line", "files", "limits"),
    [
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "500", "memory.max": "900"}, 500),
        ("4:memory:/job", {"memory/memory.limit_in_bytes": "700"}, 700),  # in a container
        ("4:memory:/j", {"memory/j/memory.limit_in_bytes": "600", "memory.max": "1"}, 600),
        ("5:cpu:/a", {"cpu/a/memory.limit_in_bytes": "500"}, None),
    ],
)
def test_limit_of_a_container_counts(tmp_path, monkeypatch, line, files, limits):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    (tmp_path / "own").write_text(f"9:name=systemd:/x\n{line}\n")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=30, free=20))
    total = device_memory(jax.devices()[:1]).total
    assert (total == limits + 30) if limits else (total > 10**6)  # the limit is not one on swap


def test_jax_running_out_of_memory_is_one_sentence():
    """More than an address can name, so that it fails at once on any machine."""
    with (
        pytest.raises(UserError) as raised,
        out_of_memory("The draw", lambda: "lower the batch size of 4"),
    ):
        jnp.ones((10**8, 10**7)).block_until_ready()
    assert str(raised.value) == (
        "The draw ran out of memory (Out of memory allocating 4,000,000,000,000,000 bytes): lower "
        "the batch size of 4."
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        # of a GPU and a TPU, as reported to JAX
        (
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 1234567890 bytes.",
            "Out of memory while trying to allocate 1,234,567,890 bytes",
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 20.05G of 15.75G hbm. Exceeded hbm capacity by 4.30G.\n\nTotal",
            "Ran out of memory in memory space hbm. Used 20.05G of 15.75G hbm",
        ),
        ("INTERNAL: an error", None),
    ],
)
def test_reasons_of_jax_are_read(text, reason):
    assert memory.exhausted(jax.errors.JaxRuntimeError(text)) == reason
