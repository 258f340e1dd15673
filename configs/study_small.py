"""One network of GPT-2's size for AR, D3PM, RADD and MLM on WikiText-103, for benchmarks.study.

12 blocks of width 768 with a tied head, as GPT-2's 124M without learned positions, and 7M more in
the adaLN blocks that all have (configs/study_tiny.py says why). Every value is ours, and no run of
it has been made. Prepare the text first:
python -m ddm_jax.prepare --source=hf:Salesforce/wikitext:wikitext-103-raw-v1 --length=1024
"""

from ml_collections import ConfigDict

from ddm_jax.config import defaults, variants


def get_config(arg: str = "") -> ConfigDict:
    variants(arg)  # takes none
    config = defaults()

    config.model.width = 768
    config.model.depth = 12
    config.model.heads = 12
    config.model.tied_head = True
    config.model.time = "constant"
    config.model.dropout = 0.1
    config.model.compute_dtype = "bfloat16"

    config.data.source = "hf:Salesforce/wikitext:wikitext-103-raw-v1"
    config.data.tokenizer = "gpt2"
    config.data.length = 1024
    config.data.workers = 4

    config.optim.lr = 3e-4
    config.optim.warmup_steps = 2_500
    config.optim.decay = "cosine"
    config.optim.weight_decay = 0.01
    config.optim.ema_decay = 0.9999
    config.train.steps = 100_000
    config.train.batch_size = 128
    config.train.log_every = 50
    config.train.checkpoint_every = 2_500

    config.eval.every = 5_000
    config.sampler.steps = 1_024

    config.layout.name = "dp"
    return config
