"""The four losses and their gradients equal the published ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import ModelConfig
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.models.network import make_network, padded_vocab
from ddm_jax.objectives import radd
from tests.batch import batch_of
from tests.models.published import params_from_state_dict, state_dict_from_params
from tests.objectives.enumeration import said

TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-4}, "float64": {"rtol": 1e-6, "atol": 1e-9}}
SCHEDULE = {"loglinear": "log_linear", "geometric": "geometric"}
CASES = ["mid", "ext0", "ext1"]


def network_of(oracle):
    """(network, params) of the published weights."""
    weights, _ = oracle("radd", "model_weights")
    _, meta = oracle("radd", "losses")
    model, tokens = meta["config"]["model"], meta["config"]["tokens"]
    config = ModelConfig(
        width=model["hidden_size"], depth=model["n_blocks"], heads=model["n_heads"]
    )
    params = params_from_state_dict(weights, config.heads, padded_vocab(tokens))
    return make_network(config, tokens), params


def process_of(oracle, schedule):
    """The published geometric schedule keeps its ends in float32."""
    _, meta = oracle("radd", "losses")
    noise = meta["config"]["noise"]
    ends = {k: float(np.float32(noise[k])) for k in ("sigma_min", "sigma_max")}
    options = ends if schedule == "geometric" else {}
    return Absorbing(SCHEDULES[SCHEDULE[schedule]].make(**options), meta["config"]["tokens"])


def all_cases(arrays, name):
    """An array of all cases, the sequences one after the other."""
    return np.concatenate([arrays[f"{case}_{name}"] for case in CASES])


@functools.cache
def losses_of_all(oracle, dtype):
    """name -> our loss of each sequence where the network says what theirs did."""
    suffix = "__f64" if dtype == "float64" else ""
    arrays, _ = oracle("radd", "losses")
    processes = {name: process_of(oracle, name) for name in SCHEDULE}

    @jax.jit
    def run(log_p, x0, xt, t, lam, k):
        given = said(log_p), {}, batch_of(x0), xt
        out = {"k_DCE": radd.any_order_at(*given, k, processes["loglinear"])}
        out["lambda_DCE"] = radd.lambda_dce_at(*given, lam, processes["loglinear"])
        for name, process in processes.items():
            out[f"{name}_t_DSE"] = radd.t_dse_at(*given, t, process)
            out[f"{name}_t_DCE"] = radd.t_dce_at(*given, t, process)
        return {name: each.loss for name, each in out.items()}

    log_p = all_cases(arrays, f"log_condition{suffix}")[..., :-1]
    tokens = all_cases(arrays, "x0"), all_cases(arrays, "xt")
    t, lam = all_cases(arrays, f"t{suffix}"), all_cases(arrays, "lambda").astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        return jax.device_get(run(log_p, *tokens, t, lam, all_cases(arrays, "k")))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("schedule", list(SCHEDULE))
def test_time_losses_equal_oracle(oracle, schedule, dtype):
    suffix = "__f64" if dtype == "float64" else ""
    arrays, meta = oracle("radd", "losses")
    ours = losses_of_all(oracle, dtype)
    want = all_cases(arrays, f"{schedule}_t_DSE{suffix}")
    np.testing.assert_allclose(ours[f"{schedule}_t_DSE"], want, **TOLERANCE[dtype])
    # the published t-DCE keeps log E of the score: sigma log(E) / E for each masked token
    sigma = all_cases(arrays, f"{schedule}_sigma{suffix}").astype(np.float64)
    rate = all_cases(arrays, f"{schedule}_dsigma{suffix}").astype(np.float64)
    e, masked = np.expm1(sigma), all_cases(arrays, "xt") == meta["config"]["tokens"]
    dce = ours[f"{schedule}_t_DCE"] + masked.sum(axis=1) * rate * np.log(e) / e
    want = all_cases(arrays, f"{schedule}_t_DCE{suffix}")
    np.testing.assert_allclose(dce, want, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lambda_and_any_order_losses_equal_oracle(oracle, dtype):
    suffix = "__f64" if dtype == "float64" else ""
    arrays, ours = oracle("radd", "losses")[0], losses_of_all(oracle, dtype)
    want = all_cases(arrays, f"lambda_DCE{suffix}")
    np.testing.assert_allclose(ours["lambda_DCE"], want, **TOLERANCE[dtype])
    # the published k-DCE is cast to float32 even in its float64 run
    want = all_cases(arrays, f"k_DCE{suffix}")
    np.testing.assert_allclose(ours["k_DCE"], want, rtol=1e-4, atol=1e-4)


GRADIENTS = {
    "t_DSE": (radd.t_dse_at, "t"),
    "t_DCE": (radd.t_dce_at, "t"),
    "lambda_DCE": (radd.lambda_dce_at, "lambda"),
    "k_DCE": (radd.any_order_at, "k"),
}


@functools.cache
def gradients(oracle):
    """name -> the gradient of the mean loss of the case "mid", by its name in the state_dict."""
    (network, params), (arrays, _) = network_of(oracle), oracle("radd", "losses")
    process = process_of(oracle, "loglinear")
    x0, xt = arrays["mid_x0"], arrays["mid_xt"]

    @jax.jit
    @jax.jacrev
    def run(params, x0, xt, levels):
        readout = network.apply(params, xt)
        given = lambda *_: readout, {}, batch_of(x0), xt
        means = [
            loss_at(*given, levels[level], process).loss.mean()
            for loss_at, level in GRADIENTS.values()
        ]
        return jnp.stack(means)

    levels = {level: arrays[f"mid_{level}"] for _, level in GRADIENTS.values()}
    each = jax.device_get(run(params, x0, xt, levels))
    rows = process.mask_id + 1
    return {
        name: state_dict_from_params(jax.tree.map(lambda x, i=i: x[i], each), rows)
        for i, name in enumerate(GRADIENTS)
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_equal_oracle(oracle, name):
    arrays, meta = oracle("radd", "losses")
    cases = [key.removesuffix(f"_{name}") for key in meta["grad_param_order"] if name in key]
    assert cases == ["mid"]
    got, key = gradients(oracle)[name], f"mid_{name}"
    norms = arrays[f"{key}_grad_norms"]
    for parameter, norm in zip(meta["grad_param_order"][key], norms, strict=True):
        np.testing.assert_allclose(
            np.linalg.norm(got[parameter]), norm, rtol=1e-3, err_msg=parameter
        )
    for name_of, want in arrays.items():
        if name_of.startswith(f"{key}_grad."):
            ours = got[name_of.removeprefix(f"{key}_grad.")]
            atol = 1e-4 * np.abs(want).max()
            np.testing.assert_allclose(ours, want, rtol=1e-3, atol=atol, err_msg=name_of)


def test_losses_along_an_order_equal_oracle(oracle):
    """sum_i -log p(x0[order_i] | what precedes it): any-order terms with one mask set a step."""
    arrays, _ = oracle("radd", "losses_ar")
    (network, params), x0 = network_of(oracle), arrays["x0"]
    n = x0.shape[1]
    orders = {
        "ar_forward": np.arange(n),
        "ar_backward": np.arange(n)[::-1],
        "ar_random": arrays["ar_random_order"],
    }
    # which step reveals each position, for each order
    step = np.argsort(list(orders.values()), axis=1)[:, None, None]
    now = step == np.arange(n)[:, None, None]
    xt = np.where(step >= np.arange(n)[:, None, None], process_of(oracle, "loglinear").mask_id, x0)

    @jax.jit
    def run(params, xt, x0):
        logit, lse = network.apply(params, xt).target(x0)
        return lse - logit

    targets = np.broadcast_to(x0, xt.shape).reshape(-1, n)
    nll = np.asarray(run(params, xt.reshape(-1, n), targets)).reshape(xt.shape)
    total = np.where(now, nll, 0).sum((1, 3))
    for ours, name in zip(total, orders, strict=True):
        np.testing.assert_allclose(ours, arrays[name], rtol=1e-4, err_msg=name)
