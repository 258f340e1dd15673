"""The command itself: published weights in, trained further, and out again."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from ddm_jax.data import tokenizers
from ddm_jax.interop.give import published
from ddm_jax.interop.releases import RELEASES, rows
from tests.interop.oracle_files import HUB, write_hub_folder
from tests.interop.runs import OURS, new_run

ROOT = Path(__file__).parents[2]
TRAIN = ["--config=configs/radd_tiny.py", "--config.train.steps=1", "--config.train.batch_size=8"]
TRAIN += ["--config.data.tokenizer=bytes", "--config.data.length=16", "--config.model.width=64"]
TRAIN += ["--config.model.depth=2", "--config.model.heads=4", "--config.eval.sequences=2"]
TRAIN += ["--config.eval.batch_size=8", "--config.optim.lr=0", "--config.eval.draws=1"]


def run(module, *args):
    command = [sys.executable, "-m", f"ddm_jax.{module}", *args]
    env = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


def test_weights_come_in_train_on_and_go_out(tmp_path):
    pytest.importorskip("safetensors")
    vocab = tokenizers.given("bytes").vocab_size
    given = new_run("radd", tmp_path, vocab)
    number = rows(RELEASES["radd"], given.config, vocab)
    arrays = published("radd", jax.tree.map(np.asarray, given.params), given.config, number)
    stated = {"model": {OURS.get(k, k): v for k, v in HUB.items()}}
    hub = write_hub_folder(tmp_path / "hub", "radd", arrays, stated)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"

    done = run("convert", "--from=radd", f"--checkpoint={hub}", f"--workdir={ours}")
    assert done.returncode == 2, done.stderr  # the recipe's tokenizer is GPT-2's
    assert f"vocab_embed.embedding has shape ({number}, 64)" in done.stderr
    assert "--tokenizer" in done.stderr
    assert not ours.exists()

    source = ["--from=radd", f"--checkpoint={hub}", "--tokenizer=bytes"]
    done = run("convert", *source, f"--workdir={ours}")
    assert done.returncode == 0, done.stderr

    done = run("main", *TRAIN, f"--workdir={ours}")
    assert "holds converted weights, not a run" in done.stderr
    begin = [f"--config.train.init_from={ours}", f"--config.data.root={tmp_path / 'data'}"]
    done = run("main", *TRAIN, *begin, f"--workdir={tmp_path / 'run'}", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["finished"]

    # a rate of 0 leaves the weights as they came
    done = run("convert", "--to=radd", f"--workdir={tmp_path / 'run'}", f"--out={theirs}")
    assert done.returncode == 0, done.stderr
    from safetensors.numpy import load_file

    back = load_file(theirs / "model.safetensors")
    assert back.keys() == arrays.keys()
    for name, x in arrays.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)
