"""SEDD-small on OpenWebText, as in Lou et al. 2023 (arXiv:2310.16834), batches of 512 x 1024.

Values marked * are those of the published configuration (louaaron/
Score-Entropy-Discrete-Diffusion, configs/ and README). config argument: process=absorb|uniform.
"""

from ml_collections import ConfigDict

from ddm_jax.config import defaults, variants


def get_config(arg: str = "") -> ConfigDict:
    process = variants(arg, process=("absorb", "uniform"))["process"]
    config = defaults()

    config.model.width = 768  # *
    config.model.depth = 12  # *
    config.model.heads = 12  # *
    config.model.time = "adaln"  # *
    config.model.cond_width = 128  # *
    config.model.norm_bias = False  # *
    config.model.dropout = 0.1  # *
    config.model.tied_head = False  # *
    config.model.compute_dtype = "bfloat16"  # *

    config.data.source = "hf:Skylion007/openwebtext"  # *
    config.data.tokenizer = "gpt2"  # *
    config.data.length = 1024  # *
    config.data.pack = "wrap"  # *
    config.data.validation_fraction = 0.005  # published: validates on WikiText-103
    config.data.test_fraction = 0.005
    config.data.workers = 4

    config.objective.name = f"sedd_{process}"
    if process == "absorb":
        config.objective.scale_by_sigma = True  # *
    config.schedule.name = {"absorb": "log_linear", "uniform": "geometric"}[process]  # *
    if process == "uniform":
        config.schedule.sigma_min = 1e-4  # *
        config.schedule.sigma_max = 20.0  # *

    config.optim.lr = 3e-4  # *
    config.optim.b1 = 0.9  # *
    config.optim.b2 = 0.999  # *
    config.optim.warmup_steps = 2_500  # *
    config.optim.decay = "constant"  # *
    config.optim.weight_decay = 0.0  # *
    config.optim.clip = 1.0  # *
    config.optim.ema_decay = 0.9999  # *

    config.train.steps = 1_300_000  # *
    config.train.batch_size = 512  # *
    config.train.times = "independent"  # *
    config.train.log_every = 50  # *
    config.train.checkpoint_every = 10_000  # *
    config.train.keep_every = 50_000  # *

    config.eval.every = 5_000
    config.eval.sequences = 1_024
    config.sampler.steps = 128  # *

    config.layout.name = "dp"
    return config
