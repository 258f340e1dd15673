"""MD4 and GenMD4 on OpenWebText, as in Shi et al. 2024 (arXiv:2406.04329), at GPT-2 small's size.

Values marked * are those of the published configurations (google-deepmind/md4, md4/configs/md4 and
genmd4, with the small size of their sweeps). The published network has gated MLPs, which ours has
not. config argument: loss=md4|genmd4.
"""

from ml_collections import ConfigDict

from ddm_jax.config import defaults, variants


def get_config(arg: str = "") -> ConfigDict:
    chosen = variants(arg, loss=("md4", "genmd4"))
    config = defaults()

    config.model.width = 768  # *
    config.model.depth = 12  # *
    config.model.heads = 12  # *
    config.model.time = "adaln"  # *
    config.model.dropout = 0.02  # *
    config.model.tied_head = False
    config.model.norm_bias = False
    config.model.compute_dtype = "bfloat16"

    config.data.source = "hf:Skylion007/openwebtext"  # *
    config.data.tokenizer = "gpt2"  # *
    config.data.length = 1024  # *
    config.data.pack = "wrap"  # *
    config.data.validation_fraction = 0.02  # *
    config.data.test_fraction = 0.005
    config.data.workers = 4

    config.objective.name = chosen["loss"]
    # *; with genmd4 it only tells the network the time: its own schedules start from w = 1 *
    config.schedule.name = "linear"

    config.optim.lr = 3e-4  # *
    config.optim.warmup_steps = 2_000  # *
    config.optim.decay = "cosine"  # *
    config.optim.b2 = 0.999  # *
    config.optim.weight_decay = 0.03  # *
    config.optim.clip = 0.0  # *: none
    config.optim.ema_decay = 0.9999  # *

    config.train.steps = 1_000_000  # *
    config.train.batch_size = 512  # *
    config.train.times = "stratified"  # *, there called antithetic
    config.train.log_every = 500  # *
    config.train.checkpoint_every = 5_000  # *
    config.train.keep_every = 200_000  # *

    config.eval.every = 10_000  # *
    config.eval.sequences = 1_024
    config.sampler.steps = 1_000  # *, on a grid of times that a cosine spaces; ours is even

    config.layout.name = "dp"
    return config
