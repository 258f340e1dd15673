"""MDLM on OpenWebText, as in Sahoo et al. 2024 (arXiv:2406.07524): 170M parameters.

Values marked * are those of the published configuration (kuleshov-group/mdlm, configs/ and
scripts/train_owt_mdlm.sh).
"""

from ml_collections import ConfigDict

from ddm_jax.config import defaults, variants


def get_config(arg: str = "") -> ConfigDict:
    variants(arg)  # takes none
    config = defaults()

    config.model.width = 768  # *
    config.model.depth = 12  # *
    config.model.heads = 12  # *
    config.model.dropout = 0.1  # *
    config.model.tied_head = False  # *
    config.model.cond_width = 128  # *
    config.model.norm_bias = False  # *
    config.model.time = "constant"  # *: adaLN layers whose input is always sigma = 0
    config.model.compute_dtype = "bfloat16"  # *

    config.data.source = "hf:Skylion007/openwebtext"  # *
    config.data.tokenizer = "gpt2"  # *
    config.data.length = 1024  # *
    config.data.pack = "wrap"  # *
    config.data.validation_fraction = 0.0125  # * but there the last 100,000 documents
    config.data.test_fraction = 0.005
    config.data.workers = 4

    config.objective.name = "mdlm"
    config.objective.steps = 0  # *: continuous time
    config.objective.importance = False  # *
    config.schedule.name = "log_linear"  # *

    config.optim.lr = 3e-4  # *
    config.optim.warmup_steps = 2_500  # *
    config.optim.decay = "constant"  # *
    config.optim.b1 = 0.9  # *
    config.optim.b2 = 0.999  # *
    config.optim.weight_decay = 0.0  # *
    config.optim.clip = 1.0  # *
    config.optim.ema_decay = 0.9999  # *

    config.train.steps = 1_000_000  # *
    config.train.batch_size = 512  # *
    config.train.times = "stratified"  # *, there called antithetic
    config.train.log_every = 50
    config.train.checkpoint_every = 2_500
    config.train.keep_every = 50_000

    config.eval.every = 5_000
    config.eval.sequences = 1_024
    config.sampler.steps = 1_000  # *

    config.layout.name = "dp"
    return config
