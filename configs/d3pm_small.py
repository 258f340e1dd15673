"""D3PM at the size of Austin et al. 2021 (arXiv:2107.03006): 12 layers, text8 or LM1B, T = 1000.

Values marked * are those of the published configuration (google-research/d3pm/text/configs.py),
whose `text8_base` and `lm1b_base` are absorbing. config argument: data=text8|lm1b,
process=absorbing|uniform|nearest. Nearest neighbours want --config.process.embedding=TABLE.npy
(docs/objectives.md shows how to make one) and neither GPT-2's vocabulary nor one of that size.
The Gaussian process is for ordered ids, that is for images, and not offered here.
"""

from ml_collections import ConfigDict

from ddm_jax.config import defaults, variants


def get_config(arg: str = "") -> ConfigDict:
    chosen = variants(arg, data=("text8", "lm1b"), process=("absorbing", "uniform", "nearest"))
    config = defaults()

    config.model.width = 768  # *
    config.model.depth = 12  # *
    config.model.heads = 12  # *
    config.model.mlp_ratio = 4  # *
    config.model.dropout = 0.0  # *
    config.model.time = "adaln"  # published: time embeddings without FiLM layers
    config.model.compute_dtype = "bfloat16"  # ours

    if chosen["data"] == "text8":
        config.data.source = "text:text8"  # the file of mattmahoney.net/dc/text8.zip, unpacked
        config.data.tokenizer = "text8"  # *
        config.data.length = 256  # *
        config.data.validation_fraction = 0.05  # the usual split: 90M, 5M and 5M characters
        config.data.test_fraction = 0.05
    else:
        config.data.source = "tfds:lm1b"  # *
        config.data.tokenizer = "sentencepiece:8192"  # published: a model of some 8,000 pieces
        config.data.length = 128  # *
        config.data.validation_fraction = 0.005
        config.data.test_fraction = 0.005
    config.data.pack = "wrap"
    config.data.workers = 4

    config.objective.name = "d3pm"
    config.process.name = f"d3pm_{chosen['process']}"
    config.process.steps = 1_000  # *
    # published: lambda = 0.01 against the MEAN of the T terms, only for absorbing noise; against
    # their sum, which is what this loss is, that is T * 0.01
    config.objective.ce_weight = 10.0 if chosen["process"] == "absorbing" else 0.0  # *

    config.optim.lr = 2e-4  # *
    config.optim.warmup_steps = 5_000  # *
    config.optim.decay = "constant"  # *
    config.optim.weight_decay = 0.0  # *
    config.optim.clip = 0.25  # *
    config.optim.ema_decay = 0.9999  # ours

    config.train.steps = 1_000_000  # ours; the published file says 10,000
    config.train.batch_size = 512  # ours; the published file says 8 a device
    config.train.log_every = 100
    config.train.checkpoint_every = 2_500

    config.eval.every = 25_000  # *
    config.eval.sequences = 1_024
    config.sampler.steps = 1_000  # every step of the chain

    config.layout.name = "dp"
    return config
