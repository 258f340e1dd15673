"""Puts the oracles' PyTorch state_dicts into our parameter tree, for tests only."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.config import ModelConfig
from ddm_jax.interop.names import DIT, params_from_published, published_from_params
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
    """RADD, SEDD or MDLM weights -> our nested dict, by the product's own mapping."""
    rows, width = weights["vocab_embed.embedding"].shape
    adaln = "sigma_map.mlp.0.weight" in weights
    config = ModelConfig(
        width=width,
        depth=len({k.split(".")[1] for k in weights if k.startswith("blocks.")}),
        heads=heads,
        cond_width=weights["sigma_map.mlp.0.weight"].shape[0] if adaln else 128,
        time="adaln" if adaln else "none",
        norm_bias="output_layer.norm_final.bias" in weights,
    )
    return params_from_published(DIT, weights, _shapes(config, padded_vocab - 1), rows)


@functools.cache
def _shapes(config: ModelConfig, vocab: int) -> dict:
    """Of the parameters, which are float32 also in enable_x64."""
    return jax.eval_shape(make_network(config, vocab).init, jax.random.key(0))


def state_dict_from_params(params: dict, rows: int) -> dict:
    """The way back, for gradients; `rows` is the published vocabulary, mask included."""
    return published_from_params(DIT, params, rows)


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
