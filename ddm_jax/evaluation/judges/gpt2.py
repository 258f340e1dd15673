"""A GPT-2 (Radford et al. 2019) as a judge, from a folder in the layout of Hugging Face.

With GPT-2 large this is the judge of most published generative perplexities. Nothing is downloaded:
the folder has config.json and model.safetensors, and vocab.json if its vocabulary is not GPT-2's.
"""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddm_jax.config import ModelConfig
from ddm_jax.data.tokenizers import gpt2
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.evaluation.judges.judge import Judge
from ddm_jax.interop.files import WithoutPrefixes
from ddm_jax.interop.names import GPT2, Params, params_from_published
from ddm_jax.interop.release_configs import GPT2_CONFIG, unsupported_gpt2_field
from ddm_jax.interop.safetensors import SafeTensors
from ddm_jax.models.network import make_network

WEIGHTS = "model.safetensors"


def is_hugging_face(folder: Path) -> bool:
    """Whether the config.json of a folder is in the layout of Hugging Face."""
    try:
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def open_gpt2(folder: Path) -> Judge:
    """Opens the judge: our own network with its weights (interop/names.py).

    Raises:
      UserError: a file is missing, is of another network, or safetensors is not installed.
    """
    config = _read_config(folder)
    tokenizer = _tokenizer(folder, config["vocab_size"])
    network = make_network(
        ModelConfig(
            width=config["n_embd"],
            depth=config["n_layer"],
            heads=config["n_head"],
            mlp_ratio=(config.get("n_inner") or 4 * config["n_embd"]) // config["n_embd"],
            time="none",
            positions="learned",
            max_length=config["n_positions"],
            attention_bias=True,
            tied_head=True,
        ),
        config["vocab_size"],
    )
    abstract = jax.eval_shape(network.init, jax.random.key(0))
    tensors = WithoutPrefixes(SafeTensors(folder / WEIGHTS))
    try:
        params = params_from_published(GPT2, tensors, abstract, config["vocab_size"])
    except UserError as error:
        raise UserError(f"--judge={folder}: {error}") from error

    @jax.jit
    def nats(params: Params, tokens: Array) -> Array:
        with jax.default_matmul_precision("highest"):
            readout = network.apply(params, tokens[:, :-1], attend="causal")
            logit, lse = readout.target(tokens[:, 1:])
        return jnp.pad(lse - logit, ((0, 0), (1, 0)))  # no token comes before the first

    return Judge(
        name=f"GPT-2 of {config['n_layer']} layers, width {config['n_embd']} ({folder})",
        encode=tokenizer.encode,
        nats=functools.partial(nats, jax.tree.map(jnp.asarray, params)),
        window=config["n_positions"],
        given=1,
        fingerprint=tokenizer.fingerprint,
        byte_lengths=_byte_lengths(tokenizer.model),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--judge={folder}: its config.json cannot be read ({error}).") from error
    if unsupported := unsupported_gpt2_field(config):
        name, value = unsupported
        raise UserError(
            f"--judge={folder} has {name}={value!r} in its config.json, and a judge needs "
            f"{GPT2_CONFIG[name]!r}: give the folder of a GPT-2 as published, that of an "
            "autoregressive run, or smollm2."
        )
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"--judge={folder} has no {WEIGHTS}: save the model with transformers' "
            "save_pretrained, which writes it."
        )
    return config


def _tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """GPT-2's own, with the ids of vocab.json if there is one."""
    path = folder / "vocab.json"
    model = path.read_bytes() if path.is_file() else gpt2.vocabulary()
    size = len(json.loads(model))
    if size > vocab_size:
        raise UserError(
            f"--judge={folder} has {vocab_size} tokens, and its vocabulary {size}: put the "
            "vocab.json that belongs to it into the folder."
        )
    return Tokenizer("gpt2", "gpt2", size, json.loads(model)[gpt2.EOS], model)


def _byte_lengths(vocabulary: bytes) -> np.ndarray:
    ids = json.loads(vocabulary)
    lengths = np.zeros(max(ids.values()) + 1, np.int64)
    for token, i in ids.items():
        # byte-level: a character of a token stands for a byte
        lengths[i] = 0 if token == gpt2.EOS else len(token)
    return lengths
