"""GIDD+ small on OpenWebText, as in von Rütte et al. 2025 (arXiv:2503.04482): 170M parameters.

Values marked * are those of the published configuration (dvruette/gidd, gidd/configs/, read in
copies of it); the paper's runs have p_uniform 0, 0.1 and 0.2.
"""

from ml_collections import ConfigDict

from configs.radd_small import get_config as radd_small
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    variants(arg)  # takes none
    config = radd_small()  # the text, its tokenizer and the widths are also *
    config.model.time = "adaln"  # *
    config.model.norm_bias = False  # the published network is MDLM's; not verified
    config.model.dropout = 0.0  # not verified

    config.data.length = 512  # 131B tokens in all * are 500,000 batches of 512 of these

    config.objective.name = "gidd"
    config.objective.weighting = "dynamic"  # *
    config.process.p_uniform = 0.2  # *

    config.optim.lr = 5e-4  # 1e-3 in the copy that has this file; not verified
    config.optim.warmup_steps = 10_000  # *
    config.optim.decay = "cosine"  # *
    config.optim.b2 = 0.99  # *
    config.optim.eps = 1e-9  # *
    config.optim.weight_decay = 0.02  # *

    config.train.steps = 500_000  # *
    config.train.batch_size = 512  # *, 64 on each of 8 devices
    config.sampler.steps = 128  # *
    return config
