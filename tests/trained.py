"""The language model of the fixture `trained_run`: 40 steps on forty short texts."""

import numpy as np

import ddm_jax
from configs.radd_tiny import get_config
from ddm_jax.config import resolve
from tests.devices import only_one_device

LENGTH = 32
STEPS = 40
SETTINGS = {
    "model.width": 32,
    "model.depth": 1,
    "model.heads": 2,
    "data.tokenizer": "bytes",
    "data.length": LENGTH,
    "data.validation_fraction": 0.2,
    "data.test_fraction": 0.2,
    "optim.warmup_steps": 1,
    "optim.lr": 3e-3,
    "optim.ema_decay": 0.9,
    "train.steps": STEPS,
    "train.batch_size": 16,
    "train.checkpoint_every": STEPS,
    "train.log_every": 10,
    "eval.every": STEPS,
    "eval.batch_size": 16,
    "eval.sequences": 16,
    "eval.draws": 1,
    "sampler.steps": 2,
    "sampler.num": 1,
}


def write_texts(folder):
    """Fills a folder and returns it."""
    rng = np.random.default_rng(0)
    words = ["so", "the", "one", "that", "we", "saw", "was", "not", "there", "told", "é"]
    for i in range(40):
        (folder / f"{i}.txt").write_text(" ".join(rng.choice(words, 60)))
    return folder


def settings(folder, **changes):
    """The fields that the recipe radd_tiny is changed in; the data is in `folder`."""
    data = {"data.source": f"text:{folder}/*.txt", "data.root": f"{folder}/sets"}
    return SETTINGS | data | {name.replace("__", "."): value for name, value in changes.items()}


def make_config(folder, **changes):
    config = get_config()
    config.update_from_flattened_dict(settings(folder, **changes))
    return resolve(config)


def train_on_texts(folder):
    """Writes the texts into the folder, and a run of one device into its subfolder `run`."""
    write_texts(folder)
    with only_one_device():
        outcome = ddm_jax.train("radd_tiny", folder / "run", overrides=settings(folder))
    assert (outcome.step, outcome.finished) == (STEPS, True)
