"""BD3-LM on OpenWebText (Arriola et al. 2025, arXiv:2503.09573), with the network of RADD-small.

Values marked * are those of the published configuration (kuleshov-group/bd3lms, configs/ and
scripts/train/train_owt_bd3lm.sh). The published models train for 850,000 steps with one block of
1,024 and then for 150,000 with small ones; here all steps are with small ones.
config argument: block=4|8|16.
"""

from ml_collections import ConfigDict

from configs.radd_small import get_config as radd_small
from ddm_jax.config import variants

# Mask ratios in training: the paper searches for them at every validation, and its table 8 (LM1B)
# has these as the better for blocks of 4 and 16. It has none for 8: ours lies between.
CLIP = {"4": (0.45, 0.95), "8": (0.4, 0.9), "16": (0.3, 0.8)}


def get_config(arg: str = "") -> ConfigDict:
    chosen = variants(arg, block=tuple(CLIP))
    config = radd_small()  # width, depth, heads, text, tokenizer, length, lr, clip, EMA, batch: *

    config.model.dropout = 0.1  # *
    config.model.norm_bias = True  # published: none, but an adaLN whose input never changes

    config.objective.name = "bd3lm"
    config.objective.block_size = int(chosen["block"])
    config.objective.clip_low, config.objective.clip_high = CLIP[chosen["block"]]
    config.schedule.eps = 0.0  # *

    config.train.steps = 1_000_000  # *
    config.eval.every = 10_000  # *
    config.sampler.steps = 1_024  # one for each token; published: up to 5,000 in each block
    return config
