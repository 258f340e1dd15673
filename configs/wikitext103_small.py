"""MDLM on WikiText-103 or WikiText-2 with their published splits; every value is ours.

Network and optimizer are those of study_small, 131M parameters, for WikiText-103; for WikiText-2,
of 2.4 million tokens, a network of 19M with more dropout. No run has been made. Prepare the text
first (docs/data.md, which also has the command for local files). config argument: corpus=103|2.
"""

from ml_collections import ConfigDict

from configs.study_small import get_config as study_small
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    corpus = variants(arg, corpus=("103", "2"))["corpus"]
    config = study_small()
    config.objective.name = "mdlm"

    config.data.source = f"hf:Salesforce/wikitext:wikitext-{corpus}-raw-v1"  # has three splits
    if corpus == "2":
        config.model.width, config.model.depth, config.model.heads = 256, 6, 4
        config.model.dropout = 0.3
        config.data.length = 256
        config.optim.warmup_steps = 500
        config.train.steps = 20_000  # 68 times the text
        config.train.batch_size = 32
        config.eval.every = 1_000
        config.sampler.steps = 256
    return config
