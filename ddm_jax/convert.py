"""The weights of a run, by themselves: python -m ddm_jax.convert --workdir=W --out=FOLDER.

The folder is a work directory with config.json and one checkpoint of the weights alone, about a
quarter of a training checkpoint: sample, evaluate and translate take it like the run.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import jax
from absl import flags

from ddm_jax import cli
from ddm_jax.config import TrainConfig
from ddm_jax.errors import UserError
from ddm_jax.parallel.layouts import dp
from ddm_jax.trained import WEIGHTS, open_run
from ddm_jax.training.checkpoint import folder_of, save_weights
from ddm_jax.training.writers import write_atomically

_WORKDIR = flags.DEFINE_string("workdir", "", "folder of the run, as ddm_jax.main wrote it")
_WEIGHTS = flags.DEFINE_string("weights", "ema", f"one of {', '.join(WEIGHTS)}")
_OUT = flags.DEFINE_string("out", "", "folder to write, which is not there yet")


def main(argv: Sequence[str]) -> None:
    """Writes the folder, whole or not at all."""
    del argv
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: give the folder of a run.")
    workdir = Path(_WORKDIR.value).expanduser()
    out = Path(_OUT.value).expanduser().absolute()
    if not _OUT.value or out.exists():
        raise UserError(f"--out={_OUT.value} must be a folder that is not there yet.")
    run = open_run(workdir, dp(jax.local_devices()[:1]), _WEIGHTS.value)
    record = json.loads((workdir / "config.json").read_text(encoding="utf-8"))
    record["config"]["train"]["checkpoints"] = ""
    record["weights"] = {"of": _WEIGHTS.value, "from": str(workdir), "step": run.step}
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_weights(folder_of(unfinished, TrainConfig()), run.step, run.params)
    write_atomically(unfinished / "config.json", json.dumps(record, indent=2) + "\n")
    unfinished.rename(out)
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(f"Wrote {out}: {_WEIGHTS.value} weights of step {run.step}, {size:,} bytes")


if __name__ == "__main__":
    cli.run(main)
