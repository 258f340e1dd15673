"""Puts the oracles' PyTorch state_dicts into our parameter tree, for tests only."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.config import ModelConfig
from ddm_jax.models.network import make_network, padded_vocab


def published_dit(weights: dict, model: dict, vocab: int, dtype: str) -> tuple[Callable, dict]:
    """(jitted apply, params) of a DiT of SEDD or MDLM, sizes as in its record; in enable_x64."""
    config = ModelConfig(
        width=model["hidden_size"],
        depth=model["n_blocks"],
        heads=model["n_heads"],
        cond_width=model["cond_dim"],
        time="adaln",
        norm_bias=False,
        compute_dtype=dtype,
    )
    params = params_from_state_dict(weights, config.heads, padded_vocab(vocab))
    return _jitted(config, vocab), jax.tree.map(lambda w: jnp.asarray(w, dtype), params)


@functools.cache
def _jitted(config: ModelConfig, vocab: int) -> Callable:
    """One function for all cases of a size: it compiles once."""
    return jax.jit(make_network(config, vocab).apply)


def params_from_state_dict(weights: dict, heads: int, padded_vocab: int) -> dict:
    """RADD, SEDD or MDLM weights (names of models.dit / model.transformer) -> our nested dict."""
    width = weights["vocab_embed.embedding"].shape[1]
    depth = len({k.split(".")[1] for k in weights if k.startswith("blocks.")})

    def pad(x: np.ndarray, axis: int) -> np.ndarray:
        room = [(0, 0)] * x.ndim
        room[axis] = (0, padded_vocab - x.shape[axis])
        return np.pad(x, room)

    def linear(name: str) -> dict:
        read = {"kernel": weights[f"{name}.weight"].T}
        if f"{name}.bias" in weights:
            read["bias"] = weights[f"{name}.bias"]
        return read

    def norm(name: str) -> dict:
        read = {"scale": weights[f"{name}.weight"]}
        if f"{name}.bias" in weights:
            read["bias"] = weights[f"{name}.bias"]
        return read

    def block(i: int) -> dict:
        at = f"blocks.{i}."
        read = {
            "norm1": norm(at + "norm1"),
            "norm2": norm(at + "norm2"),
            "mlp_in": linear(at + "mlp.0"),
            "mlp_out": linear(at + "mlp.2"),
            "qkv": {"kernel": weights[at + "attn_qkv.weight"].T.reshape(width, 3, heads, -1)},
            "out": {"kernel": weights[at + "attn_out.weight"].T.reshape(heads, -1, width)},
        }
        if at + "adaLN_modulation.weight" in weights:
            read["adaln"] = linear(at + "adaLN_modulation")
        return read

    blocks = [block(i) for i in range(depth)]
    stacked = {
        part: {leaf: np.stack([b[part][leaf] for b in blocks]) for leaf in blocks[0][part]}
        for part in blocks[0]
    }
    params = {
        "embed": {"embedding": pad(weights["vocab_embed.embedding"], 0)},
        "blocks": stacked,
        "final_norm": norm("output_layer.norm_final"),
        "head": {
            "kernel": pad(weights["output_layer.linear.weight"].T, 1),
            "bias": pad(weights["output_layer.linear.bias"], 0),
        },
    }
    if "sigma_map.mlp.0.weight" in weights:
        params["time"] = {
            "mlp_in": linear("sigma_map.mlp.0"),
            "mlp_out": linear("sigma_map.mlp.2"),
        }
        params["final_adaln"] = linear("output_layer.adaLN_modulation")
    return params


def state_dict_from_params(params: dict, rows: int) -> dict:
    """The way back, for gradients; `rows` is the published vocabulary, mask included."""
    width = params["embed"]["embedding"].shape[1]
    flat = {}

    def put(name: str, leaf: dict, outputs_last: bool = True) -> None:
        for ours, theirs in {"scale": "weight", "bias": "bias"}.items():
            if ours in leaf:
                flat[f"{name}.{theirs}"] = leaf[ours]
        if "kernel" in leaf:
            kernel = leaf["kernel"]
            if kernel.ndim > 2:  # the heads have axes of their own
                kernel = kernel.reshape((width, -1) if outputs_last else (-1, width))
            flat[f"{name}.weight"] = kernel.T

    names = {
        "norm1": "norm1",
        "norm2": "norm2",
        "mlp_in": "mlp.0",
        "mlp_out": "mlp.2",
        "qkv": "attn_qkv",
        "out": "attn_out",
    }
    if "adaln" in params["blocks"]:
        names["adaln"] = "adaLN_modulation"
        put("sigma_map.mlp.0", params["time"]["mlp_in"])
        put("sigma_map.mlp.2", params["time"]["mlp_out"])
        put("output_layer.adaLN_modulation", params["final_adaln"])
    for i in range(len(params["blocks"]["norm1"]["scale"])):
        for ours, theirs in names.items():
            leaf = {k: v[i] for k, v in params["blocks"][ours].items()}
            put(f"blocks.{i}.{theirs}", leaf, outputs_last=ours != "out")
    flat["vocab_embed.embedding"] = params["embed"]["embedding"][:rows]
    put("output_layer.norm_final", params["final_norm"])
    head = params["head"]
    put("output_layer.linear", {"kernel": head["kernel"][:, :rows], "bias": head["bias"][:rows]})
    return flat
