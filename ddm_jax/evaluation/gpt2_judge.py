"""A GPT-2 (Radford et al. 2019) as a judge, from a folder in the layout of Hugging Face.

With GPT-2 large this is the judge of most published generative perplexities. Nothing is fetched:
the folder has config.json and model.safetensors, and vocab.json if its vocabulary is not GPT-2's.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddm_jax.data import gpt2
from ddm_jax.data.tokenizers import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.evaluation.judge import Judge
from ddm_jax.evaluation.pretrained import heads, layer_norm, make_nats, read_safetensors, stacked

WEIGHTS = "model.safetensors"
WANTED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
}
_LAYER = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


def is_hugging_face(folder: Path) -> bool:
    """Whether the config.json of a folder is in the layout of Hugging Face."""
    try:
        return "model_type" in json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def open_gpt2(folder: Path) -> Judge:
    """The judge.

    Raises:
      UserError: a file is missing, is of another network, or safetensors is not installed.
    """
    config = _read_config(folder)
    try:
        params = _weights(read_safetensors(folder / WEIGHTS), config["n_layer"])
    except KeyError as error:
        raise UserError(
            f"{folder / WEIGHTS} has no array {error}: give the folder of a GPT-2, with all of its "
            "layers."
        ) from error
    tokenizer = _tokenizer(folder, config["vocab_size"])
    number, epsilon = config["n_head"], config["layer_norm_epsilon"]
    return Judge(
        name=f"GPT-2 of {config['n_layer']} layers, width {config['n_embd']} ({folder})",
        encode=tokenizer.encode,
        nats=make_nats(
            params, params["wte"], lambda params, tokens: hidden(number, epsilon, params, tokens)
        ),
        window=config["n_positions"],
        given=1,
        fingerprint=tokenizer.fingerprint,
        byte_lengths=_byte_lengths(tokenizer.model),
    )


def hidden(number: int, epsilon: float, params: Any, tokens: Array) -> Array:
    """Final states of a GPT-2 with so many heads, causal: int32[B, L] -> float32[B, L, D].

    params: wte [V, D], wpe [P, D], ln_f.weight, ln_f.bias [D], layers of [N, in, out] and [N, D].
    """

    def layer(x: Array, w: dict[str, Array]) -> tuple[Array, None]:
        def linear(name: str, x: Array) -> Array:
            return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

        def norm(name: str) -> Array:
            return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], epsilon)

        q, k, v = (
            heads(y, number) for y in jnp.split(linear("attn.c_attn", norm("ln_1")), 3, axis=-1)
        )
        seen = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x = x + linear("attn.c_proj", seen.reshape(x.shape))
        inner = jax.nn.gelu(linear("mlp.c_fc", norm("ln_2")), approximate=True)
        return x + linear("mlp.c_proj", inner), None

    x = params["wte"][tokens] + params["wpe"][: tokens.shape[1]]
    x, _ = jax.lax.scan(layer, x, params["layers"])
    return layer_norm(x, params["ln_f.weight"], params["ln_f.bias"], epsilon)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--judge={folder}: its config.json cannot be read ({error}).") from error
    for name, wanted in WANTED.items():
        if (value := config.get(name, wanted)) != wanted:
            raise UserError(
                f"--judge={folder} has {name}={value!r} in its config.json, and a judge has "
                f"{wanted!r}: give a folder of a GPT-2 as it was published, of an autoregressive "
                "run of ours, or smollm2."
            )
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"--judge={folder} has no {WEIGHTS}: save the model with transformers' "
            "save_pretrained, which writes it."
        )
    return {"layer_norm_epsilon": 1e-5} | config


def _weights(arrays: dict[str, np.ndarray], depth: int) -> dict[str, Any]:
    arrays = {name.removeprefix("transformer."): x for name, x in arrays.items()}
    layers = [
        {f"{n}.{part}": arrays[f"h.{i}.{n}.{part}"] for n in _LAYER for part in ("weight", "bias")}
        for i in range(depth)
    ]
    top = {"wte": "wte.weight", "wpe": "wpe.weight"}
    top |= {name: name for name in ("ln_f.weight", "ln_f.bias")}
    return {k: jnp.asarray(arrays[v]) for k, v in top.items()} | {"layers": stacked(layers)}


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
