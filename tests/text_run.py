"""A small language model on forty short texts, to be trained in a few seconds."""

import numpy as np

from ddm_jax.config import defaults, resolve

LENGTH = 32


def write_texts(folder):
    """Fills a folder and returns it."""
    rng = np.random.default_rng(0)
    words = ["so", "the", "one", "that", "we", "saw", "was", "not", "there", "told", "é"]
    for i in range(40):
        (folder / f"{i}.txt").write_text(" ".join(rng.choice(words, 60)))
    return folder


def make_config(folder, **changes):
    config = defaults()
    config.model.update({"width": 32, "depth": 2, "heads": 2, "max_length": LENGTH})
    config.data.update({"source": f"text:{folder}/*.txt", "tokenizer": "bytes", "length": LENGTH})
    config.data.update({"root": f"{folder}/sets", "validation_fraction": 0.2})
    config.data.test_fraction = 0.2
    config.objective.name = "radd_t_dce"
    config.optim.update({"warmup_steps": 1, "lr": 3e-3, "ema_decay": 0.9})
    config.train.update({"steps": 40, "batch_size": 16, "checkpoint_every": 40, "log_every": 40})
    config.eval.update({"every": 40, "batch_size": 16, "sequences": 16, "draws": 1})
    config.sampler.update({"steps": 2, "num": 1})
    for name, value in changes.items():
        section, field = name.split("__")
        config[section][field] = value
    return resolve(config)
