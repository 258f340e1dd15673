"""UDLM of the size of Duo's networks on OpenWebText, and its recipe without the curriculum.

Values marked * are those of the published configuration (s-sahoo/duo, configs/ and
scripts/train_owt_duo.sh; algo duo_base is the loss of UDLM, Schiff et al. 2024, arXiv:2412.10193).
"""

from ml_collections import ConfigDict

from configs.radd_small import get_config as radd_small
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    variants(arg)  # takes none
    config = radd_small()  # the data, the widths, lr, clip, EMA, batch size and schedule are also *
    config.model.time = "adaln"  # *
    config.model.norm_bias = False  # *
    config.model.dropout = 0.1  # *

    config.objective.name = "udlm"

    config.optim.warmup_steps = 2_500  # MDLM's, on whose code Duo is built
    config.train.steps = 1_000_000  # *
    config.sampler.steps = 1_000  # *
    return config
