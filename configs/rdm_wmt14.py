"""RDM on WMT14, English to German (Zheng et al. 2023): rdm_iwslt14 with another text and batch.

Values marked * are the published ones, as there (architecture diffusion_transformer_wmt). The text
is the original one, not distilled. config argument: process=absorb|multinomial.
"""

from ml_collections import ConfigDict

from configs.rdm_iwslt14 import get_config as rdm_iwslt14
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    process = variants(arg, process=("absorb", "multinomial"))["process"]
    config = rdm_iwslt14(f"process={process}")

    config.model.heads = 8  # *
    config.model.mlp_ratio = 4  # *
    config.model.dropout = 0.2  # *

    # dl.fbaipublicfiles.com/nat/original_dataset.zip, its BPE undone (docs/seq2seq.md)
    config.data.source = "pairs:wmt14/train.en,wmt14/train.de"
    config.data.validation = "pairs:wmt14/valid.en,wmt14/valid.de"
    config.data.test = "pairs:wmt14/test.en,wmt14/test.de"
    config.data.tokenizer = "sentencepiece:37000"  # Vaswani et al. 2017, section 5.1

    # 512 x 256 = 131,072 positions; published: 32 batches of 4,096 tokens, over 4 GPUs
    config.train.batch_size = 512  # *

    config.sampler.routing = "uncond"  # *
    return config
