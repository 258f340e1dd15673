"""RDM on WMT16, English to Romanian (Zheng et al. 2023): rdm_wmt14 with another text and batch.

Values marked * are the published ones, as there. config argument: process=absorb|multinomial.
"""

from ml_collections import ConfigDict

from configs.rdm_wmt14 import get_config as rdm_wmt14
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    process = variants(arg, process=("absorb", "multinomial"))["process"]
    config = rdm_wmt14(f"process={process}")

    config.model.dropout = 0.3  # *

    # wmt16.tar.gz of github.com/nyu-dl/dl4mt-nonauto (Lee et al. 2018), its BPE undone
    config.data.source = "pairs:wmt16/train.en,wmt16/train.ro"
    config.data.validation = "pairs:wmt16/dev.en,wmt16/dev.ro"
    config.data.test = "pairs:wmt16/test.en,wmt16/test.ro"
    config.data.tokenizer = "sentencepiece:32000"  # ours

    config.optim.warmup_steps = 15_000  # *
    config.train.steps = 120_000  # *
    # 128 x 256 = 32,768 positions; published: 16 batches of 2,048 tokens, over 2 GPUs
    config.train.batch_size = 128  # *

    config.sampler.noise_scale = 1.0  # *
    return config
