"""The translator of the fixture `pairs_run`: 6 steps on pairs of few words.

The targets are the sources backwards, word by word: a small network learns some of it in a few
seconds, but no test depends on how much.
"""

import random

from ddm_jax.config import defaults, resolve
from ddm_jax.experiment import build
from ddm_jax.training import loop
from tests.devices import only_one_device

WORDS = ("ba", "de", "gi", "ko", "lu", "ma")


def pairs(count, seed):
    rng = random.Random(seed)
    sources = [" ".join(rng.choices(WORDS, k=rng.randrange(1, 5))) for _ in range(count)]
    return [(source, " ".join(source.split()[::-1])) for source in sources]


def make_config(files, kind="encoder_decoder", **changes):
    config = defaults()
    config.seed = 6  # batches 1 and 2 have one shape, 5 and 6 differ
    config.model.update({"kind": kind, "width": 16, "depth": 1, "heads": 2, "max_length": 16})
    config.model.dropout = 0.1
    config.data.update(
        {"source": f"pairs:{files}/train.tsv", "validation": f"pairs:{files}/valid.tsv"}
    )
    config.data.update({"test": f"pairs:{files}/test.tsv", "tokenizer": "bytes"})
    config.data.update({"length": 16, "source_length": 16, "buckets": 2, "root": f"{files}/sets"})
    config.objective.name = "rdm_absorb"
    config.process.steps = 5
    config.optim.warmup_steps = 1
    config.train.update({"steps": 6, "batch_size": 8, "log_every": 1, "checkpoint_every": 2})
    config.train.keep_last = 3
    config.eval.update({"every": 6, "batch_size": 8, "sequences": 16, "draws": 1})
    config.eval.translations = 16
    config.sampler.update({"name": "rdm", "steps": 2, "num": 2, "temperature": 0.0})
    for name, value in changes.items():
        section, field = name.split("__")
        config[section][field] = value
    return resolve(config)


def train_on_pairs(folder):
    """Writes the pairs into the folder, and a run of one device into its subfolder `run`."""
    for name, seed in (("train", 0), ("valid", 1), ("test", 2)):
        lines = [f"{source}\t{target}\n" for source, target in pairs(60, seed)]
        (folder / f"{name}.tsv").write_text("".join(lines))
    with only_one_device():
        assert loop.train_experiment(build(make_config(folder)), folder / "run").finished
