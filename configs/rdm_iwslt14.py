"""RDM on IWSLT14, German to English (Zheng et al. 2023, arXiv:2302.05737).

Values marked * are those of the published code (HKUNLP/reparam-discrete-diffusion, in fairseq:
experiments/mt_train.sh and mt_generate.sh with the README's arguments, architecture
diffusion_transformer_iwslt). config argument: process=absorb|multinomial.
"""

from ml_collections import ConfigDict

from ddm_jax.config import defaults, variants


def get_config(arg: str = "") -> ConfigDict:
    process = variants(arg, process=("absorb", "multinomial"))["process"]
    config = defaults()

    config.model.kind = "encoder_decoder"
    config.model.width = 512  # *
    config.model.depth = 6  # *, each of encoder and decoder
    config.model.heads = 4  # *
    config.model.mlp_ratio = 2  # *
    config.model.dropout = 0.3  # *
    config.model.tied_head = True  # *
    config.model.max_length = 256  # *
    config.model.compute_dtype = "bfloat16"  # ours

    # fairseq's examples/translation/prepare-iwslt14.sh writes these to iwslt14.tokenized.de-en/tmp:
    # lower-cased Moses tokens before BPE
    config.data.source = "pairs:iwslt14/train.de,iwslt14/train.en"
    config.data.validation = "pairs:iwslt14/valid.de,iwslt14/valid.en"
    config.data.test = "pairs:iwslt14/test.de,iwslt14/test.en"
    config.data.tokenizer = "sentencepiece:10000"  # published: 10,000 joint BPE merges
    config.data.length = 256  # *, the length head's classes
    config.data.source_length = 256
    config.data.buckets = 4  # ours; published: batches of sentences sorted by length
    # the EOS is given, as in published decoding; published training noises it under absorb
    config.data.eos = "given"
    config.data.workers = 4

    config.objective.name = f"rdm_{process}"
    config.objective.weighting = "linear"  # *
    config.objective.q_sample = "coupled"  # *
    config.objective.label_smoothing = 0.1  # *
    config.objective.length_weight = 0.1  # *
    config.process.steps = 50  # *
    if process == "absorb":
        config.process.name = "d3pm_absorbing"
        config.schedule.name = "d3pm_mutual_information"  # *, alpha_bar = 1 - t/T
    else:
        config.process.name = "d3pm_uniform"
        config.schedule.name = "rdm_cosine"  # *

    config.optim.lr = 5e-4  # *
    config.optim.warmup_steps = 30_000  # *
    config.optim.decay = "inverse_sqrt"  # *
    config.optim.b1 = 0.9  # *
    config.optim.b2 = 0.98  # *
    config.optim.eps = 1e-8  # *
    config.optim.weight_decay = 0.01  # *, published: of biases and norms, too
    config.optim.clip = 0.0  # *
    config.optim.ema_decay = 0.9999  # *

    config.train.steps = 300_000  # *
    config.train.batch_size = 16  # 16 x 256 = 4,096 * positions, in every bucket
    config.train.checkpoint_every = 10_000  # *
    config.train.keep_last = 10  # *, of which --weights=average:5 averages five

    config.eval.every = 10_000
    config.eval.batch_size = 128
    config.eval.translations = 500

    config.sampler.name = "rdm"
    config.sampler.steps = 10  # *, one of 2, 4, 10, 16, 25
    config.sampler.temperature = 0.0  # *
    config.sampler.lengths = 5  # *, though theirs are the likeliest length and its neighbours
    config.sampler.routing = "cond"  # *
    config.sampler.cutoff = "cosine"  # *
    config.sampler.noise_scale = 0.0  # *

    config.layout.name = "dp"
    return config
