"""An autoregressive transformer on OpenWebText, the baseline of MDLM and BD3-LM.

Sahoo et al. 2024 (arXiv:2406.07524), Arriola et al. 2025 (arXiv:2503.09573). Values marked * are
those of the published configuration (kuleshov-group/bd3lms, configs/ and
scripts/train/train_owt_ar.sh).
"""

from ml_collections import ConfigDict

from configs.radd_small import get_config as radd_small
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    variants(arg)  # takes none
    config = radd_small()  # width, depth, heads, text, tokenizer, length, lr, clip, EMA, batch: *

    config.model.dropout = 0.1  # *
    config.model.norm_bias = False  # *

    config.objective.name = "ar"
    config.schedule.name = "auto"  # no noise

    config.train.steps = 1_000_000  # *
    config.eval.every = 10_000  # *
    return config
