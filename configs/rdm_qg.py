"""RDM on question generation, a passage to a question on it (Zheng et al. 2023).

rdm_qqp, all of whose published values are those of this task, with DiffuSeq's text of it.
config argument: process=absorb|multinomial.
"""

from ml_collections import ConfigDict

from configs.rdm_qqp import get_config as rdm_qqp
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    process = variants(arg, process=("absorb", "multinomial"))["process"]
    config = rdm_qqp(f"process={process}")

    # the files that github.com/Shark-NLP/DiffuSeq links to, {"src", "trg"} a line
    config.data.source = "pairs:qg/train.jsonl"
    config.data.validation = "pairs:qg/valid.jsonl"
    config.data.test = "pairs:qg/test.jsonl"

    # 256 * sequences where a passage has 33 to 64 tokens, 128 where it has more
    config.train.batch_size = 128
    return config
