"""MDLM on the Penn Treebank in Mikolov's version and splits; every value is ours.

The network is that of wikitext103_small:corpus=2, with a smaller vocabulary: 8M parameters, for
929,589 words. No run has been made. The files ptb.{train,valid,test}.txt are expected in the folder
ptb (docs/data.md).
"""

from ml_collections import ConfigDict

from configs.wikitext103_small import get_config as wikitext103_small
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    variants(arg)  # takes none
    config = wikitext103_small("corpus=2")
    config.data.source = "text:ptb/ptb.train.txt"
    config.data.validation = "text:ptb/ptb.valid.txt"
    config.data.test = "text:ptb/ptb.test.txt"
    config.data.tokenizer = "sentencepiece:8192"  # the text has 10,000 different words
    config.data.length = 128
    return config
