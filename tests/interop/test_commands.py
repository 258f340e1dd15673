"""The commands themselves: published weights in, trained further, and out again."""

import json

import jax
import numpy as np
import pytest

from configs.radd_tiny import get_config
from ddm_jax.config import resolve
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.errors import UserError
from ddm_jax.interop.to_published import published_tensors
from ddm_jax.runs.record import check_workdir
from tests import commands
from tests.interop.oracle_files import write_hub_folder
from tests.interop.runs import STATED, new_run

pytestmark = pytest.mark.slow

TRAIN = {
    "train": {"steps": 2, "batch_size": 8},
    "data": {"tokenizer": "bytes", "length": 16},
    "model": {"width": 64, "depth": 2, "heads": 4, "positions": "learned", "max_length": 32}
    | {"attention_bias": True, "tied_head": True, "shift": True},
    "eval": {"sequences": 2, "batch_size": 8, "draws": 1},
    "sampler": {"steps": 4, "num": 2},
    "optim": {"lr": 0},
}


def run(command, *flags):
    return commands.run(command, *flags, code=0).stdout


def test_autoregressive_weights_come_in_learn_to_denoise_and_go_out(tmp_path):
    """GPT-2's, read from the left by RADD's objective; a rate of 0 leaves them as they came."""
    load_file = pytest.importorskip("safetensors.numpy").load_file
    vocab = tokenizers.pretrained_tokenizer("bytes").vocab_size
    given = new_run("gpt2", vocab)
    arrays = published_tensors("gpt2", jax.tree.map(np.asarray, given.params), given.config, vocab)
    hub = write_hub_folder(tmp_path / "hub", "gpt2", arrays, STATED["gpt2"])
    ours, begun, theirs = (tmp_path / name for name in ("ours", "begun", "theirs"))

    source = ["--from=gpt2", f"--checkpoint={hub}", "--tokenizer=bytes"]
    assert "sha256" in run("convert", *source, f"--workdir={ours}")
    with pytest.raises(UserError, match="holds converted weights, not a run"):
        check_workdir(ours, resolve(get_config()))

    set_to = [f"--config.{s}.{k}={x}" for s, fields in TRAIN.items() for k, x in fields.items()]
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(f"{i} and {i} make {2 * i}. " * 20)
    begin = [f"--config.train.init_from={ours}", f"--config.data.source=text:{tmp_path}/*.txt"]
    begin += [f"--config.data.root={tmp_path / 'data'}"]
    said = run("main", "--config=configs/radd_tiny.py", *set_to, *begin, f"--workdir={begun}")
    assert "read from the left" in said
    assert (begun / "samples" / "00000002.txt").read_bytes().count(b"=== sample") == 2
    lines = (begun / "metrics.jsonl").read_text().splitlines()
    assert np.isfinite(next(x["nll"] for x in map(json.loads, lines) if "nll" in x))

    run("convert", "--to=gpt2", f"--workdir={begun}", f"--out={theirs}")
    back = load_file(theirs / "model.safetensors")
    assert back.keys() == arrays.keys()
    for name, x in arrays.items():
        np.testing.assert_array_equal(back[name], x, err_msg=name)
