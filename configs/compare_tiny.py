"""Objectives against each other on two CPU cores, for ddm_jax.compare: minutes for many runs.

One small network for all, with adaLN blocks at a constant time, so that none has more parameters
than another; --objectives=udlm:model.time=adaln adds the time input for those that need it. Batches
and heads split over eight devices.
"""

from ml_collections import ConfigDict

from ddm_jax.config import defaults, variants


def get_config(arg: str = "") -> ConfigDict:
    variants(arg)  # takes none
    config = defaults()

    config.model.width = 64
    config.model.depth = 2
    config.model.heads = 8
    config.model.time = "constant"

    config.data.source = "embedded"
    config.data.tokenizer = "sentencepiece:512"
    config.data.length = 32

    # ar learns at 3e-4 already, and above it amplifies rounding without bounds (docs/compare.md)
    config.optim.lr = 2e-3
    config.optim.b2 = 0.98
    config.optim.warmup_steps = 50
    config.optim.decay = "cosine"
    config.optim.ema_decay = 0.98
    config.train.steps = 400
    config.train.batch_size = 32

    config.train.log_every = 10
    config.train.checkpoint_every = 200
    config.eval.every = 50
    config.eval.batch_size = 64
    config.eval.sequences = 256
    config.eval.draws = 4
    config.sampler.steps = 16
    config.sampler.num = 1
    return config
