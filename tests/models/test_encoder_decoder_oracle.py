"""The encoder-decoder holds the published network of RDM exactly."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import ModelConfig
from ddm_jax.models.network import make_network, padded_vocab
from tests.models.published import encoder_decoder_params

TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-5}, "float64": {"rtol": 1e-9, "atol": 1e-11}}
SUFFIX = {"float32": "", "float64": "__f64"}


@dataclasses.dataclass(frozen=True)
class Case:
    """The oracle's arrays and weights, and our memory and logits of the same input."""

    arrays: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    suffix: str
    tolerance: dict[str, float]
    valid: np.ndarray
    seen: np.ndarray
    memory: Any
    logits: np.ndarray


@pytest.fixture(scope="module", params=["float32", "float64"])
def case(request, oracle) -> Case:
    dtype = request.param
    weights, _ = oracle("rdm", "model_weights")
    arrays, record = oracle("rdm", "model_forward")
    sizes = record["config"]
    vocab, pad, unk = sizes["vocab"], sizes["specials"]["pad"], sizes["specials"]["unk_mask"]
    config = ModelConfig(
        kind="encoder_decoder",
        width=sizes["hidden"],
        depth=sizes["layers"],
        heads=sizes["heads"],
        mlp_ratio=sizes["ffn"] // sizes["hidden"],
        time="input",
        max_length=arrays["length_logits"].shape[1],
        tied_head=True,
        compute_dtype=dtype,
    )
    valid, seen = arrays["src_tokens"] != pad, arrays["x"] != pad
    x = np.where(arrays["x"] == unk, vocab, arrays["x"])
    with jax.enable_x64(dtype == "float64"):
        network = make_network(config, vocab)
        params = encoder_decoder_params(
            weights, config.heads, padded_vocab(vocab), config.max_length, unk
        )
        params = jax.tree.map(lambda w: jnp.asarray(w, dtype), params)
        shapes = jax.eval_shape(network.init, jax.random.key(0))
        jax.tree.map(
            lambda ours, new: np.testing.assert_equal(ours.shape, new.shape), params, shapes
        )

        @jax.jit
        def run(params, source, valid, x, t, seen):
            memory = network.encode(params, source, valid)
            return memory, network.apply(params, x, t, memory=memory, seen=seen).logits()

        t = jnp.asarray(arrays["t"], dtype)
        memory, logits = jax.device_get(run(params, arrays["src_tokens"], valid, x, t, seen))
    return Case(
        arrays, weights, SUFFIX[dtype], TOLERANCE[dtype], valid, seen, memory, np.asarray(logits)
    )


def test_decoder_equals_oracle(case):
    assert not case.seen.all()
    want = case.arrays["logits" + case.suffix]
    np.testing.assert_allclose(case.logits[case.seen], want[case.seen], **case.tolerance)


def test_encoder_equals_oracle_through_what_each_layer_is_given_of_it(case):
    assert not case.valid.all()
    encoded = case.arrays["encoder_out" + case.suffix][case.valid]
    for i, layer in enumerate(zip(case.memory.k, case.memory.v, strict=True)):
        for name, ours in zip("kv", layer, strict=True):
            at = f"decoder.layers.{i}.encoder_attn.{name}_proj."
            want = encoded @ case.weights[at + "weight"].T + case.weights[at + "bias"]
            got = ours[case.valid].reshape(want.shape)
            np.testing.assert_allclose(got, want, **case.tolerance)


def test_length_head_equals_oracle(case):
    want = case.arrays["length_logits" + case.suffix]
    np.testing.assert_allclose(case.memory.length_logits, want, **case.tolerance)
