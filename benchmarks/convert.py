"""Seconds and memory of a conversion: a checkpoint of RADD-small's or SEDD-small's size.

    python -m benchmarks.convert [--release=sedd] [--json]

The checkpoint has the published names and shapes and random values (12 layers of width 768, 50,258
tokens), as model.safetensors. The command runs in a process of its own and is timed from start to
end. Peak memory is the largest resident size of that process, including Python, JAX and the pages
of the files; it is also given as a ratio to the size of the checkpoint.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags

from ddm_jax import cli
from ddm_jax.experiment import make_parts
from ddm_jax.interop.names import list_tensors
from ddm_jax.interop.release_configs import config_of_release, vocabulary_rows
from ddm_jax.interop.releases import RELEASES
from ddm_jax.interop.safetensors import WEIGHTS_FILE, write_safetensors

_RELEASE = flags.DEFINE_enum(
    "release", "sedd", list(RELEASES), "Release whose checkpoint is converted."
)
_JSON = cli.define_json()
VOCAB = 50_257


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Writes a checkpoint of the release into `folder`, and converts it there."""
    release = RELEASES[name]
    config = config_of_release(release, folder / WEIGHTS_FILE)
    vocab = VOCAB + release.added_tokens
    abstract = jax.eval_shape(make_parts(config, vocab)[2].init, jax.random.key(0))
    draw = np.random.default_rng(0).standard_normal
    arrays = {
        release.prefix + t.name: draw(t.shape, np.float32)
        for t in list_tensors(release.scheme, abstract, vocabulary_rows(release, config, vocab))
    }
    write_safetensors(folder / WEIGHTS_FILE, arrays)
    parameters = sum(x.size for x in arrays.values())
    size = (folder / WEIGHTS_FILE).stat().st_size
    del arrays
    command = [sys.executable, "-m", "ddm_jax.convert", f"--from={name}"]
    begin = time.perf_counter()
    subprocess.run([*command, f"--checkpoint={folder}", f"--workdir={folder / 'ours'}"], check=True)
    seconds = time.perf_counter() - begin
    # of the child processes that have ended: only this one
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return {
        "release": name,
        "parameters": parameters,
        "checkpoint_bytes": size,
        "seconds": round(seconds, 1),
        "peak_bytes": peak,
        "peak_over_checkpoint": round(peak / size, 2),
    }


def main(argv: list[str]) -> None:
    """Prints the figures."""
    del argv
    with tempfile.TemporaryDirectory() as folder:
        found = measure(_RELEASE.value, Path(folder))
    print(
        f"{found['release']}: {found['parameters']:,} parameters in {found['seconds']} s, peak "
        f"memory {found['peak_bytes'] / 1e9:.2f} GB, {found['peak_over_checkpoint']} times the "
        "checkpoint"
    )
    if _JSON.value:
        print(json.dumps(found))


if __name__ == "__main__":
    app.run(main)
