"""The network holds the published RADD, SEDD and MDLM networks exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import ModelConfig
from ddm_jax.models.network import make_network, padded_vocab
from tests.models.published import params_from_state_dict

TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-4}, "float64": {"rtol": 1e-6, "atol": 1e-9}}
SUFFIX = {"float32": "", "float64": "__f64"}


def readout(weights, model, tokens, x, sigma, dtype, **options):
    """Our Readout of the published weights at x."""
    config = ModelConfig(
        width=model["hidden_size"],
        depth=model["n_blocks"],
        heads=model["n_heads"],
        cond_width=model["cond_dim"],
        compute_dtype=dtype,
        **options,
    )
    with jax.enable_x64(dtype == "float64"):
        network = make_network(config, tokens)
        params = params_from_state_dict(weights, config.heads, padded_vocab(tokens))
        params = jax.tree.map(lambda w: jnp.asarray(w, dtype), params)
        sigma = None if sigma is None else jnp.asarray(sigma, dtype)
        return jax.jit(network.apply)(params, jnp.asarray(x), sigma)


def log_softmax(x):
    return x - np.logaddexp.reduce(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_radd_network_equals_oracle(oracle, dtype):
    weights, _ = oracle("radd", "model_weights")
    arrays, meta = oracle("radd", "model_forward")
    tokens = meta["config"]["tokens"]
    with jax.enable_x64(dtype == "float64"):
        ours = readout(weights, meta["config"]["model"], tokens, arrays["x"], None, dtype)
        logits = np.asarray(ours.logits())
    want = arrays["logits" + SUFFIX[dtype]][..., :tokens]
    np.testing.assert_allclose(logits, want, **TOLERANCE[dtype])
    want = arrays["forward" + SUFFIX[dtype]][..., :tokens]
    np.testing.assert_allclose(log_softmax(logits), want, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", ["model_absorb_forward", "model_uniform_forward"])
@pytest.mark.parametrize("which", ["a", "b"])
def test_sedd_network_equals_oracle(oracle, case, which, dtype):
    """Our logits, scaled and with a zero at x_t as SEDD does, are its log score."""
    weights, _ = oracle("sedd", "model_weights")
    arrays, meta = oracle("sedd", case)
    config, x = meta["config"], arrays["x"]
    sigma = arrays[f"sigma_{which}"].astype(dtype)
    options = {"time": "adaln", "norm_bias": False}
    with jax.enable_x64(dtype == "float64"):
        ours = readout(weights, config["model"], config["tokens"], x, sigma, dtype, **options)
        score = np.array(ours.logits())
    if config["model"]["scale_by_sigma"]:
        score -= (np.log(np.expm1(sigma)) + np.log(config["tokens"]))[:, None, None]
    is_token = x < config["tokens"]
    score[(*np.nonzero(is_token), x[is_token])] = 0
    want = arrays[f"log_score_{which}" + SUFFIX[dtype]][..., : config["tokens"]]
    np.testing.assert_allclose(score, want, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mdlm_network_equals_oracle(oracle, dtype):
    weights, _ = oracle("mdlm", "dit_weights")
    arrays, meta = oracle("mdlm", "forward")
    vocab = arrays["backbone_logits_time"].shape[-1]
    options = {"time": "adaln", "norm_bias": False}
    sigma = arrays["sigma"].astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        ours = readout(
            weights, meta["config"]["model"], vocab - 1, arrays["x"], sigma, dtype, **options
        )
        logits = np.asarray(ours.logits())
    want = arrays["backbone_logits_time" + SUFFIX[dtype]][..., :-1]
    np.testing.assert_allclose(logits, want, **TOLERANCE[dtype])
    masked = arrays["x"] == vocab - 1
    want = arrays["subs_time" + SUFFIX[dtype]][..., :-1]
    np.testing.assert_allclose(log_softmax(logits)[masked], want[masked], **TOLERANCE[dtype])


def test_mdlm_network_at_sigma_zero_equals_oracle(oracle):
    weights, _ = oracle("mdlm", "dit_weights")
    arrays, meta = oracle("mdlm", "forward")
    vocab = arrays["backbone_logits_time"].shape[-1]
    ours = readout(
        weights,
        meta["config"]["model"],
        vocab - 1,
        arrays["x"],
        np.zeros(len(arrays["x"])),
        "float32",
        time="adaln",
        norm_bias=False,
    )
    want = arrays["backbone_logits_sigma0"][..., :-1]
    np.testing.assert_allclose(ours.logits(), want, **TOLERANCE["float32"])
