"""Multinomial diffusion on enwik8, as in Hoogeboom et al. 2021 (arXiv:2102.05379): bytes, T = 4000.

Values marked * are those of the published configuration (ehoogeboom/multinomial_diffusion,
text_diffusion/). No run has been made. The files enwik8.{train,valid,test}, of 90, 5 and 5 million
bytes, are expected in the folder enwik8 (docs/data.md says how to cut them).
"""

from ml_collections import ConfigDict

from ddm_jax.config import defaults, variants


def get_config(arg: str = "") -> ConfigDict:
    variants(arg)  # takes none
    config = defaults()

    config.model.width = 512  # *
    config.model.depth = 12  # *
    config.model.heads = 16  # *, published: 8 of them local, the others with linear attention
    config.model.dropout = 0.0  # *
    config.model.time = "adaln"  # published: embeddings of the time in the attention blocks
    config.model.compute_dtype = "bfloat16"  # ours

    config.data.source = "text:enwik8/enwik8.train"
    config.data.validation = "text:enwik8/enwik8.valid"
    config.data.test = "text:enwik8/enwik8.test"
    config.data.tokenizer = "bytes"  # *
    config.data.length = 320  # *
    config.data.pack = "wrap"  # *, here with an EOS after each section of some 8,000 characters
    config.data.workers = 4

    config.objective.name = "d3pm"
    config.objective.ce_weight = 0.0  # *
    config.process.name = "d3pm_uniform"  # *
    config.process.steps = 4_000  # *
    config.schedule.name = "rdm_cosine_old"  # *

    config.optim.lr = 1e-4  # *, published: falls by 1% at each epoch of 8,789 steps
    config.optim.warmup_steps = 0  # *
    config.optim.clip = 1.0  # ours
    config.optim.ema_decay = 0.9999  # ours

    config.train.steps = 1_000_000  # ours; published: at most 1,000 epochs
    config.train.batch_size = 32  # *
    config.train.log_every = 100
    config.train.checkpoint_every = 2_500

    config.eval.every = 25_000
    config.eval.sequences = 1_024
    config.sampler.steps = 4_000  # every step of the chain
    config.layout.name = "dp"
    return config
