"""A tiny run with new weights, and no folder."""

import jax

from configs.radd_tiny import get_config
from ddm_jax.config import resolve
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.experiment import make_parts
from ddm_jax.runs.run import Run
from ddm_jax.settle import settle

LENGTH = 24


def tiny_run(objective="radd_t_dce", letter="", push=100.0, **fields):
    """A run that reads bytes; `letter` gets `push` nats more than the rest."""
    config = get_config()
    sizes = {"model.width": 16, "model.depth": 1, "model.heads": 2, "objective.name": objective}
    data = {"data.tokenizer": "bytes", "data.length": LENGTH, "sampler.steps": 4}
    for name, value in {**sizes, **data, **fields}.items():
        section, field = name.split(".")
        config[section][field] = value
    config = settle(resolve(config))
    tokenizer = tokenizers.pretrained_tokenizer("bytes")
    process, _, network = make_parts(config, tokenizer.vocab_size)
    params = network.init(jax.random.key(0))
    # new weights give all tokens the same probability: a head of some size makes a choice of it
    shape = params["head"]["kernel"].shape
    kernel = 0.3 * jax.random.normal(jax.random.key(1), shape)
    bias = params["head"]["bias"]
    if letter:
        bias = bias.at[ord(letter)].add(push)
    params = params | {"head": {"kernel": kernel, "bias": bias}}
    return Run(config, tokenizer, process, network, 7, params)
