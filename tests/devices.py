"""One device where there are eight: a program then compiles in three quarters of the time."""

import contextlib
from collections.abc import Iterator

import jax
import pytest


@contextlib.contextmanager
def only_one_device() -> Iterator[None]:
    """What asks jax for its devices finds the first one."""
    device = jax.devices()[0]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("devices", "local_devices"):
            patch.setattr(jax, name, lambda: [device])
        for name in ("device_count", "local_device_count"):
            patch.setattr(jax, name, lambda: 1)
        yield
