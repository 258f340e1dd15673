"""Checkpoints restore under any layout, from a bucket, and as bare weights."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from ddm_jax.config import TrainConfig
from ddm_jax.errors import UserError
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.checkpoint import Checkpoints, folder_of, restore_weights, save_weights
from tests.parallel.runs import make, train

NAME = "sedd_absorb"  # with adaLN blocks


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> tuple[epath.Path, Any]:
    """A checkpoint after three steps on 8 devices, fsdp_tp; and the state that it holds."""
    parts = make(NAME, "fsdp_tp", 8)
    _, _, state = train(parts, 3)
    folder = epath.Path(tmp_path_factory.mktemp("run")) / "checkpoints"
    checkpoints = Checkpoints(folder, keep_last=2, keep_every=100)
    checkpoints.save(3, state, {"step": 3})
    checkpoints.close()
    return folder, jax.device_get(state)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "devices"), [("dp", 1), ("pmap", 4), ("zero1", 8), ("hsdp", 8), ("tp", 2)]
)
def test_a_checkpoint_is_restored_under_another_layout(saved, layout, devices):
    """Bit for bit, with its shardings; test_layouts.py trains from such a state."""
    folder, wanted = saved
    parts = make(NAME, layout, devices)
    checkpoints = Checkpoints(folder, keep_last=2, keep_every=100)
    state, position = checkpoints.restore(parts.state, parts.layout)
    checkpoints.close()
    assert position == {"step": 3}
    shardings = parts.layout.state_shardings(parts.state)
    jax.tree.map(lambda x, s: np.testing.assert_equal(x.sharding, s), state, shardings)
    jax.tree.map(lambda x, like: np.testing.assert_equal(x.dtype, like.dtype), state, parts.state)
    jax.tree.map(np.testing.assert_array_equal, state, wanted)


@pytest.mark.slow
def test_bare_weights_are_read_like_those_of_a_run(saved, tmp_path):
    folder, _ = saved
    parts = make(NAME, "fsdp", 8)
    at, ema = restore_weights(folder, parts.state.params, parts.layout)
    save_weights(epath.Path(tmp_path) / "checkpoints", at, ema)
    whole = dp(jax.devices()[:1])
    again, bare = restore_weights(epath.Path(tmp_path) / "checkpoints", parts.state.params, whole)
    assert again == at == 3
    jax.tree.map(np.testing.assert_array_equal, ema, bare)
    sizes = [
        sum(f.stat().st_size for f in Path(d).rglob("*") if f.is_file()) for d in (folder, tmp_path)
    ]
    assert sizes[1] < 0.4 * sizes[0]


def test_where_checkpoints_go(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder_of(Path("run"), TrainConfig()) == epath.Path(tmp_path) / "run" / "checkpoints"
    elsewhere = TrainConfig(checkpoints="elsewhere")
    assert folder_of(Path("run"), elsewhere) == epath.Path(tmp_path) / "elsewhere"
    with pytest.raises(UserError, match=r"'s3://bucket/run' is not a place that Orbax can write"):
        folder_of(Path("run"), TrainConfig(checkpoints="s3://bucket/run"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"needs gcsfs: pip install .*\[gcs\]'\."):
        folder_of(Path("run"), TrainConfig(checkpoints="gs://bucket/run"))


IN_A_BUCKET = """
import jax, numpy as np
from pathlib import Path
from ddm_jax.config import TrainConfig
from ddm_jax.parallel.layouts import dp
from ddm_jax.runs.checkpoint import Checkpoints, folder_of, restore_weights
from tests.parallel.runs import make, start

folder = folder_of(Path("/nowhere"), TrainConfig(checkpoints="gs://bucket/runs/one"))
parts = make("radd_t_dce", "fsdp", 4)
state = start(parts)
checkpoints = Checkpoints(folder, keep_last=2, keep_every=100)
for number in (1, 2, 3):
    checkpoints.save(number, state, {"step": number})
checkpoints.close()
assert sorted(p.name for p in folder.iterdir()) == ["2", "3"], list(folder.iterdir())
checkpoints = Checkpoints(folder, keep_last=2, keep_every=100)
again, position = checkpoints.restore(parts.state, parts.layout)
checkpoints.close()
assert position == {"step": 3}
jax.tree.map(np.testing.assert_array_equal, state, again)
step, ema = restore_weights(folder, parts.state.params, dp(jax.devices()[:1]))
jax.tree.map(np.testing.assert_array_equal, ema, state.ema)
print("restored", step)
"""


# it leaves out a header that TensorStore wants
SERVE = """
import sys
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator.server import create_server

whole = objects.download

def download(request, response, storage, *args, **kwargs):
    whole(request, response, storage)
    if response.status.value < 400:
        where = request.params["bucket_name"], request.params["object_id"]
        response["x-goog-generation"] = storage.get_file_obj(*where)["generation"]

objects.download = download
create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket="bucket").run()
"""


@pytest.mark.slow
def test_checkpoints_in_a_bucket():
    """Against an emulator of Google Cloud Storage on this machine."""
    for package in ("gcsfs", "gcp_storage_emulator"):
        if not importlib.util.find_spec(package):
            pytest.skip(f"{package} is not installed: pip install gcsfs gcp-storage-emulator")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(port)
        url = f"http://localhost:{port}"
        environment = {"STORAGE_EMULATOR_HOST": url, "TENSORSTORE_GCS_HTTP_URL": url}
        done = subprocess.run(
            [sys.executable, "-c", IN_A_BUCKET],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    finally:
        server.kill()
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "restored 3"


def wait_for(port: int) -> None:
    for _ in range(6000):
        with socket.socket() as probe:
            if not probe.connect_ex(("localhost", port)):
                return
        time.sleep(0.1)
    raise TimeoutError(f"nothing listens on port {port}")
