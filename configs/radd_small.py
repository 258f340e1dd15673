"""RADD-small on OpenWebText, as in Ou et al. 2024 (arXiv:2406.03736): 162M parameters.

Values marked * are those of the published configuration (ML-GSAI/RADD, configs/).
config argument: loss=t_dce|t_dse|lambda_dce|ao.
"""

from ml_collections import ConfigDict

from ddm_jax.config import defaults, variants


def get_config(arg: str = "") -> ConfigDict:
    chosen = variants(arg, loss=("t_dce", "t_dse", "lambda_dce", "ao"))
    config = defaults()

    config.model.width = 768  # *
    config.model.depth = 12  # *
    config.model.heads = 12  # *
    config.model.dropout = 0.02  # *
    config.model.tied_head = False  # *
    config.model.compute_dtype = "bfloat16"  # published: float16 with loss scaling

    config.data.source = "hf:Skylion007/openwebtext"  # *
    config.data.tokenizer = "gpt2"  # *
    config.data.length = 1024  # *
    config.data.pack = "wrap"  # *
    config.data.validation_fraction = 0.005  # some 40,000 documents
    config.data.test_fraction = 0.005
    config.data.workers = 4

    config.objective.name = f"radd_{chosen['loss']}"
    config.schedule.name = "log_linear"  # *

    config.optim.lr = 3e-4  # *
    config.optim.warmup_steps = 2_500  # *
    config.optim.decay = "constant"  # *
    config.optim.weight_decay = 0.0  # *
    config.optim.clip = 1.0  # *
    config.optim.ema_decay = 0.9999  # *

    config.train.steps = 400_000  # * of the paper's main results
    config.train.batch_size = 512  # *
    config.train.log_every = 50  # *
    config.train.checkpoint_every = 2_500
    config.train.keep_every = 50_000  # *

    config.eval.every = 5_000
    config.eval.sequences = 1_024
    config.sampler.steps = 1_024  # *

    config.layout.name = "dp"
    return config
