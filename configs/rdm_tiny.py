"""RDM on two CPU cores: the King James Version to the World English Bible, verse by verse.

Not a recipe of the paper: every value is ours. config argument:
objective=rdm_absorb|rdm_multinomial|absorb|multinomial|ar, of which absorb and multinomial have the
vanilla losses and samplers of the same processes.
"""

from ml_collections import ConfigDict

from ddm_jax.config import defaults, variants


def get_config(arg: str = "") -> ConfigDict:
    objectives = ("rdm_absorb", "rdm_multinomial", "absorb", "multinomial", "ar")
    objective = variants(arg, objective=objectives)["objective"]
    config = defaults()

    config.model.kind = "prefix"  # learns far sooner here than "encoder_decoder"
    config.model.width = 128
    config.model.depth = 3
    config.model.heads = 4
    config.model.mlp_ratio = 4
    config.model.dropout = 0.1
    config.model.tied_head = True
    config.model.max_length = 64

    config.data.source = "pairs:embedded"
    config.data.tokenizer = "sentencepiece:4096"
    config.data.length = 64  # 96 % of the pairs fit; 81 % would in 48 tokens
    config.data.source_length = 64
    config.data.buckets = 2

    config.optim.lr = 1e-3
    config.optim.clip = 0.0  # published; the weighted sum over t has gradients far above 1
    config.optim.b2 = 0.98
    config.optim.warmup_steps = 200
    config.optim.decay = "cosine"
    config.optim.ema_decay = 0.995
    config.train.steps = 3_200
    config.train.batch_size = 16  # 32 in the bucket of 32 tokens
    config.train.log_every = 20
    config.train.checkpoint_every = 500
    config.eval.every = 500
    config.eval.sequences = 256
    config.eval.translations = 64

    config.sampler.steps = 10
    config.sampler.temperature = 0.0

    config.layout.name = "dp"

    if objective == "ar":
        config.objective.name = "ar"
        config.model.time = "constant"  # the same network
        config.data.eos = "predicted"
        config.sampler.name = "autoregressive"
        return config

    absorbs = objective in ("rdm_absorb", "absorb")
    config.process.name = "d3pm_absorbing" if absorbs else "d3pm_uniform"
    config.process.steps = 50
    config.schedule.name = "d3pm_mutual_information" if absorbs else "rdm_cosine"
    config.sampler.lengths = 3
    if objective in ("rdm_absorb", "rdm_multinomial"):
        config.objective.name = objective
        config.objective.weighting = "linear"
        config.objective.q_sample = "default"  # half the time of "coupled"
        config.objective.label_smoothing = 0.1
        config.sampler.name = "rdm"
        config.sampler.routing = "cond"
        config.sampler.cutoff = "cosine"
    elif objective == "absorb":
        config.objective.name = "d3pm"
        config.sampler.name = "rdm"
        config.sampler.routing = "default"  # ancestral sampling, with scores of what it drew
    else:
        config.objective.name = "d3pm"
        config.sampler.name = "ancestral"
        config.sampler.selection = "mbr"  # it has no scores
    return config
