"""Runs whose weights are known: each checkpoint says one letter; and calls of `sample` on them."""

import dataclasses
import functools
import json
from pathlib import Path

import jax
import pytest
from absl import flags
from absl.testing import flagsaver
from etils import epath

from configs.radd_tiny import get_config
from ddm_jax import sample
from ddm_jax.config import resolve
from ddm_jax.data.build.text import prepare_text
from ddm_jax.data.sets.text import TextSpec
from ddm_jax.errors import UserError
from ddm_jax.experiment import make_parts
from ddm_jax.runs.checkpoint import Checkpoints
from ddm_jax.runs.record import write_record
from ddm_jax.settle import settle
from ddm_jax.training.optimizer import make_optimizer
from ddm_jax.training.state import init_state

ROOT = Path(__file__).parents[1]
LENGTH = 16
SETTINGS = {
    "model.width": 16,
    "model.depth": 1,
    "model.heads": 2,
    "data.tokenizer": "bytes",
    "data.length": LENGTH,
    "data.validation_fraction": 0.2,
    "optim.warmup_steps": 1,
    "train.steps": 3,
    "train.batch_size": 8,
    "train.checkpoint_every": 2,
    "eval.batch_size": 8,
    "eval.sequences": 8,
    "eval.draws": 1,
    "sampler.steps": 3,
    "sampler.num": 1,
}


def prepare_letters(folder):
    """A prepared set of forty short texts, in bytes."""
    (folder / "text").mkdir()
    for i in range(40):
        (folder / "text" / f"{i}.txt").write_text(f"{i} bottles of beer on the wall " * 10)
    spec = TextSpec(f"text:{folder}/text/*.txt", "bytes", LENGTH, validation_fraction=0.2)
    return prepare_text(spec, folder / "set", progress=False)


def config_of(prepared, **changes):
    config = get_config()
    changes = {name.replace("__", "."): value for name, value in changes.items()}
    for name, value in {**SETTINGS, "data.source": str(prepared.folder), **changes}.items():
        section, field = name.split(".")
        config[section][field] = value
    return settle(resolve(config))


def make_run(workdir, prepared, letters, **changes):
    """A run whose checkpoints hold, in their averaged weights, the letters by step."""
    config = config_of(prepared, **changes)
    write_record(workdir, config, prepared)
    _, _, network = make_parts(config, prepared.tokenizer.vocab_size)
    optimizer = make_optimizer(config.optim, config.train.steps)
    init = functools.partial(init_state, network, optimizer, metrics=("loss",))
    state = jax.jit(init)(jax.random.key(0))
    checkpoints = Checkpoints(epath.Path(workdir / "checkpoints"), keep_last=9, keep_every=9)
    for step, letter in letters.items():
        bias = state.ema["head"]["bias"].at[ord(letter)].set(100.0)
        ema = state.ema | {"head": state.ema["head"] | {"bias": bias}}
        checkpoints.save(step, dataclasses.replace(state, ema=ema), {})
    checkpoints.close()
    return workdir


def call(*args):
    """What the command line does in this process; returns the exit code."""
    with flagsaver.flagsaver():
        sample.define_flags()
        flags.FLAGS(["sample", *map(str, args)])
        return sample.main([])


def drawn(out, *args):
    """Calls with --out, and returns the objects that were written."""
    assert call(f"--out={out}", *args) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def contents(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def assert_refused(args, *parts):
    with pytest.raises(UserError) as raised:
        call(*args)
    message = str(raised.value)
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < 500  # paths of tests are long
    for part in parts:
        assert part in message
