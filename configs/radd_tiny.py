"""RADD on two CPU cores: presidential messages, a small network, a few minutes.

config argument: loss=t_dce|t_dse|lambda_dce|ao.
"""

from ml_collections import ConfigDict

from ddm_jax.config import defaults, variants


def get_config(arg: str = "") -> ConfigDict:
    chosen = variants(arg, loss=("t_dce", "t_dse", "lambda_dce", "ao"))
    config = defaults()

    config.model.width = 128
    config.model.depth = 4
    config.model.heads = 4

    config.data.source = "embedded"
    config.data.tokenizer = "sentencepiece:2048"
    config.data.length = 128

    config.objective.name = f"radd_{chosen['loss']}"

    config.optim.lr = 2e-3
    config.optim.warmup_steps = 100
    config.optim.decay = "cosine"
    config.optim.weight_decay = 0.1

    config.train.steps = 2_000
    config.train.batch_size = 32
    config.train.log_every = 20
    config.train.checkpoint_every = 500
    config.optim.ema_decay = 0.995  # about the last tenth of the run

    config.eval.every = 500
    config.eval.sequences = 256

    config.sampler.steps = 128
    config.layout.name = "dp"
    return config
