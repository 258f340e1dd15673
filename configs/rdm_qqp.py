"""RDM on QQP, a question to a paraphrase of it (Zheng et al. 2023), with DiffuSeq's text.

rdm_iwslt14 with another text and optimizer. Values marked * are the published ones, as there
(experiments/diffuseq_train.sh and diffuseq_generate.sh, architecture diffusion_transformer_qqp).
config argument: process=absorb|multinomial.
"""

from ml_collections import ConfigDict

from configs.rdm_iwslt14 import get_config as rdm_iwslt14
from ddm_jax.config import variants


def get_config(arg: str = "") -> ConfigDict:
    process = variants(arg, process=("absorb", "multinomial"))["process"]
    config = rdm_iwslt14(f"process={process}")

    config.model.heads = 8  # *
    config.model.dropout = 0.2  # *, published: 0.1 in attention and inside the MLPs
    config.model.max_length = 128  # *

    # the files that github.com/Shark-NLP/DiffuSeq links to, {"src", "trg"} a line
    config.data.source = "pairs:qqp/train.jsonl"
    config.data.validation = "pairs:qqp/valid.jsonl"
    config.data.test = "pairs:qqp/test.jsonl"
    config.data.tokenizer = "sentencepiece:16384"  # ours; published: bert-base-uncased's
    config.data.length = 128  # *
    config.data.source_length = 128  # *
    config.data.buckets = 3

    config.optim.warmup_steps = 10_000  # *
    config.optim.b2 = 0.999  # *
    config.optim.clip = 1.0  # *

    config.train.steps = 70_000  # *
    # 256 * sequences in the bucket of 32 tokens, where nearly all are; 64 in that of 128
    config.train.batch_size = 64
    config.train.checkpoint_every = 5_000  # *
    config.train.keep_last = 5  # *

    config.eval.every = 5_000

    config.sampler.steps = 10  # *, one of 2, 5, 10, 20, 25
    config.sampler.temperature = 0.3  # *
    config.sampler.lengths = 3  # *
    config.sampler.candidates = 3  # *
    config.sampler.selection = "mbr"  # *
    config.sampler.routing = "uncond"  # *
    config.sampler.noise_scale = 5.0  # *
    return config
