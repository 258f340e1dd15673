"""One network for AR, D3PM, RADD and MLM on two CPU cores, for benchmarks.study.

adaLN blocks at a constant time, so that none has more parameters than another; an objective that
needs the time gets it as input (model.time=adaln). Every value is ours.
"""

from ml_collections import ConfigDict

from ddm_jax.config import defaults, variants


def get_config(arg: str = "") -> ConfigDict:
    variants(arg)  # takes none
    config = defaults()

    config.model.width = 64
    config.model.depth = 2
    config.model.heads = 2
    config.model.time = "constant"

    config.data.source = "embedded"
    config.data.tokenizer = "sentencepiece:512"
    config.data.length = 64

    config.optim.lr = 1.5e-3
    config.optim.b2 = 0.98
    config.optim.warmup_steps = 100
    config.optim.decay = "cosine"
    config.optim.ema_decay = 0.99
    config.train.steps = 2_500
    config.train.batch_size = 16

    config.train.log_every = 50
    config.train.checkpoint_every = 1_250
    config.eval.every = 250
    config.eval.batch_size = 64
    config.eval.sequences = 256
    config.eval.draws = 4
    config.sampler.steps = 64
    config.sampler.num = 1
    return config
