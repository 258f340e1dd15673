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


def encoder_decoder_params(weights: dict, heads: int, rows: int, lengths: int, mask: int) -> dict:
    """RDM's state_dict -> our nested dict; all its ids are tokens, its mask's row is ours too.

    rows: of our embedding. lengths: our max_length. mask: the id of its mask.
    """
    vocab, width = weights["encoder.embed_tokens.weight"].shape
    pad = 1  # the first token has the position after it

    def linear(*names: str, out: tuple[int, ...] = (), into: tuple[int, ...] = ()) -> dict:
        """Several layers side by side, the heads of their outputs or inputs apart."""
        kernel = np.stack([weights[f"{name}.weight"].T for name in names], axis=1)
        bias = np.stack([weights[f"{name}.bias"] for name in names])
        kernel = kernel.reshape(*(into or kernel.shape[:1]), *(out or kernel.shape[2:]))
        return {"kernel": kernel, "bias": bias.reshape(out or bias.shape[1:])}

    def norm(name: str) -> dict:
        return {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}

    def positions(side: str) -> dict:
        table = weights[f"{side}.embed_positions.weight"][pad + 1 :]
        return {"embedding": np.pad(table, ((0, lengths - len(table)), (0, 0)))}

    def block(at: str) -> dict:
        each = width // heads
        projections = [f"{at}.self_attn.{x}_proj" for x in "qkv"]
        read = {
            "qkv": linear(*projections, out=(3, heads, each)),
            "out": linear(f"{at}.self_attn.out_proj", into=(heads, each)),
            "norm1": norm(f"{at}.self_attn_layer_norm"),
            "mlp_in": linear(f"{at}.fc1"),
            "mlp_out": linear(f"{at}.fc2"),
            "norm2": norm(f"{at}.final_layer_norm"),
        }
        if at.startswith("decoder"):
            cross = f"{at}.encoder_attn"
            read["cross_q"] = linear(f"{cross}.q_proj", out=(heads, each))
            read["cross_kv"] = linear(f"{cross}.k_proj", f"{cross}.v_proj", out=(2, heads, each))
            read["cross_out"] = linear(f"{cross}.out_proj", into=(heads, each))
            read["cross_norm"] = norm(f"{cross}_layer_norm")
        return read

    def side(name: str) -> dict:
        depth = len({k.split(".")[2] for k in weights if k.startswith(f"{name}.layers.")})
        blocks = [block(f"{name}.layers.{i}") for i in range(depth)]
        return {
            "positions": positions(name),
            "fusion": linear(f"{name}.pe_fusion_ffn"),
            "blocks": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks),
        }

    embedding = np.zeros((rows, width), weights["encoder.embed_tokens.weight"].dtype)
    embedding[:vocab] = weights["encoder.embed_tokens.weight"]
    embedding[vocab] = embedding[mask]
    return {
        "embed": {"embedding": embedding},
        "encoder": side("encoder"),
        "decoder": side("decoder"),
        "time": linear("decoder.time_pos_emb.output_mlp"),
        "length": {"kernel": weights["decoder.embed_length.weight"].T},
        "head": {"bias": np.zeros(rows, embedding.dtype)},
    }
