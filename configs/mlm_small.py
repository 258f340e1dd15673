"""A masked language model of the size of BERT-base (Devlin et al. 2018, arXiv:1810.04805).

Values marked * are the paper's (section 3, appendix A.2). The network, text and tokenizer are those
of RADD-small, to compare with: BERT has learned positions, LayerNorm after each layer, its own
word pieces, books and Wikipedia, and a second loss (next sentence prediction).
"""

from ml_collections import ConfigDict

from configs.radd_small import get_config as radd_small
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    variants(arg)  # takes none
    config = radd_small()  # width, depth, heads: *

    config.model.dropout = 0.1  # *
    config.model.tied_head = True  # as in BERT's code
    config.data.length = 512  # *, 128 in its first 90 % of steps

    config.objective.name = "mlm"
    config.schedule.name = "auto"  # no schedule: 15 %

    config.optim.lr = 1e-4  # *
    config.optim.warmup_steps = 10_000  # *
    config.optim.decay = "linear"  # *
    config.optim.weight_decay = 0.01  # *

    config.train.steps = 1_000_000  # *
    config.train.batch_size = 256  # *
    return config
