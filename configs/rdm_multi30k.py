"""RDM on Multi30k, German to English, on two CPU cores: 29,000 captions of pictures.

Not a recipe of the paper: every value is ours. config argument: as for rdm_tiny.
"""

from ml_collections import ConfigDict

from configs.rdm_tiny import get_config as rdm_tiny
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    objectives = ("rdm_absorb", "rdm_multinomial", "absorb", "multinomial", "ar")
    objective = variants(arg, objective=objectives)["objective"]
    config = rdm_tiny(f"objective={objective}")

    config.model.width = 192
    config.model.depth = 3
    config.model.mlp_ratio = 2
    config.model.dropout = 0.2

    # data/task1/raw of github.com/multi30k/dataset, unpacked or not (then name them .gz)
    config.data.source = "pairs:multi30k/train.de,multi30k/train.en"
    config.data.validation = "pairs:multi30k/val.de,multi30k/val.en"
    config.data.test = "pairs:multi30k/test_2016_flickr.de,multi30k/test_2016_flickr.en"
    config.data.tokenizer = "sentencepiece:6000"
    config.data.length = 48  # 99.9 % of the pairs fit
    config.data.source_length = 48

    config.train.steps = 5_000
    config.train.batch_size = 24  # 48 in the bucket of 24 tokens, where nine in ten captions are
    return config
