"""The four losses and their gradients equal the published ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import ModelConfig
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.models.network import make_network, padded_vocab
from ddm_jax.models.readout import Readout
from ddm_jax.objectives import radd
from tests.models.published import params_from_state_dict, state_dict_from_params

TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-4}, "float64": {"rtol": 1e-6, "atol": 1e-9}}
SCHEDULE = {"loglinear": "log_linear", "geometric": "geometric"}
CASES = ["mid", "ext0", "ext1"]


def setup(oracle, case, schedule, dtype):
    """(apply, params, batch, xt, arrays, process) of one oracle case; inside enable_x64."""
    weights, _ = oracle("radd", "model_weights")
    arrays, meta = oracle("radd", "losses")
    model, tokens = meta["config"]["model"], meta["config"]["tokens"]
    config = ModelConfig(
        width=model["hidden_size"],
        depth=model["n_blocks"],
        heads=model["n_heads"],
        compute_dtype=dtype,
    )
    network = make_network(config, tokens)
    params = params_from_state_dict(weights, config.heads, padded_vocab(tokens))
    params = jax.tree.map(lambda w: jnp.asarray(w, dtype), params)
    noise = meta["config"]["noise"]
    # the published geometric schedule keeps its ends in float32
    ends = {k: float(np.float32(noise[k])) for k in ("sigma_min", "sigma_max")}
    options = ends if schedule == "geometric" else {}
    process = Absorbing(SCHEDULES[SCHEDULE[schedule]].make(**options), mask_id=tokens)
    x0 = jnp.asarray(arrays[f"{case}_x0"])
    batch = {"tokens": x0, "valid": jnp.ones(x0.shape, bool)}
    return jax.jit(network.apply), params, batch, jnp.asarray(arrays[f"{case}_xt"]), arrays, process


def given(log_p):
    """An `apply` whose network has said log_p[b, L, V] already."""
    vocab = log_p.shape[-1]
    readout = Readout(log_p, jnp.eye(vocab, dtype=log_p.dtype), jnp.zeros(vocab), vocab)
    return lambda params, tokens: readout


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("schedule", list(SCHEDULE))
def test_time_losses_equal_oracle(oracle, schedule, case, dtype):
    suffix = "__f64" if dtype == "float64" else ""
    with jax.enable_x64(dtype == "float64"):
        _, params, batch, xt, arrays, process = setup(oracle, case, schedule, dtype)
        log_p = arrays[f"{case}_log_condition{suffix}"][..., : process.mask_id]
        apply = given(jnp.asarray(log_p))
        t = jnp.asarray(arrays[f"{case}_t{suffix}"])
        dse = np.asarray(radd.t_dse_at(apply, params, batch, xt, t, process).loss)
        dce = np.asarray(radd.t_dce_at(apply, params, batch, xt, t, process).loss)
    want = arrays[f"{case}_{schedule}_t_DSE{suffix}"]
    np.testing.assert_allclose(dse, want, **TOLERANCE[dtype])
    # the published t-DCE keeps log E of the score: sigma log(E) / E for each masked token
    sigma = arrays[f"{case}_{schedule}_sigma{suffix}"].astype(np.float64)
    rate = arrays[f"{case}_{schedule}_dsigma{suffix}"].astype(np.float64)
    e = np.expm1(sigma)
    constant = (np.asarray(xt) == process.mask_id).sum(axis=1) * rate * np.log(e) / e
    want = arrays[f"{case}_{schedule}_t_DCE{suffix}"]
    np.testing.assert_allclose(dce + constant, want, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_lambda_and_any_order_losses_equal_oracle(oracle, case, dtype):
    suffix = "__f64" if dtype == "float64" else ""
    with jax.enable_x64(dtype == "float64"):
        _, params, batch, xt, arrays, process = setup(oracle, case, "loglinear", dtype)
        log_p = arrays[f"{case}_log_condition{suffix}"][..., : process.mask_id]
        apply = given(jnp.asarray(log_p))
        lam = jnp.asarray(arrays[f"{case}_lambda"], dtype)
        lambda_dce = radd.lambda_dce_at(apply, params, batch, xt, lam, process).loss
        k = jnp.asarray(arrays[f"{case}_k"])
        any_order = radd.any_order_at(apply, params, batch, xt, k, process).loss
    want = arrays[f"{case}_lambda_DCE{suffix}"]
    np.testing.assert_allclose(lambda_dce, want, **TOLERANCE[dtype])
    # the published k-DCE is cast to float32 even in its float64 run
    np.testing.assert_allclose(any_order, arrays[f"{case}_k_DCE{suffix}"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["t_DSE", "t_DCE", "lambda_DCE", "k_DCE"])
def test_gradients_equal_oracle(oracle, name):
    loss, level = {
        "t_DSE": (radd.t_dse_at, "t"),
        "t_DCE": (radd.t_dce_at, "t"),
        "lambda_DCE": (radd.lambda_dce_at, "lambda"),
        "k_DCE": (radd.any_order_at, "k"),
    }[name]
    _, meta = oracle("radd", "losses")
    cases = [key.removesuffix(f"_{name}") for key in meta["grad_param_order"] if name in key]
    assert cases
    for case in cases:
        key = f"{case}_{name}"
        apply, params, batch, xt, arrays, process = setup(oracle, case, "loglinear", "float32")
        at = jnp.asarray(arrays[f"{case}_{level}"])

        def mean_loss(params, apply=apply, batch=batch, xt=xt, at=at, process=process):
            return loss(apply, params, batch, xt, at, process).loss.mean()

        rows = arrays[f"{case}_log_condition"].shape[-1]
        got = state_dict_from_params(jax.jit(jax.grad(mean_loss))(params), rows)
        norms = arrays[f"{key}_grad_norms"]
        for parameter, norm in zip(meta["grad_param_order"][key], norms, strict=True):
            got_norm = np.linalg.norm(got[parameter])
            np.testing.assert_allclose(got_norm, norm, rtol=1e-3, err_msg=parameter)
        for name_of, want in arrays.items():
            if name_of.startswith(f"{key}_grad."):
                ours = got[name_of.removeprefix(f"{key}_grad.")]
                atol = 1e-4 * np.abs(want).max()
                np.testing.assert_allclose(ours, want, rtol=1e-3, atol=atol, err_msg=name_of)


def test_losses_along_an_order_equal_oracle(oracle):
    """sum_i -log p(x0[order_i] | what precedes it): any-order terms with one mask set a step."""
    arrays, _ = oracle("radd", "losses_ar")
    apply, params, _, _, _, process = setup(oracle, "mid", "loglinear", "float32")
    x0 = jnp.asarray(arrays["x0"])
    n = x0.shape[1]
    orders = {
        "ar_forward": np.arange(n),
        "ar_backward": np.arange(n)[::-1],
        "ar_random": arrays["ar_random_order"],
    }
    for name, order in orders.items():
        total = np.zeros(len(x0))
        for i in range(n):
            xt = x0.at[:, order[i:]].set(process.mask_id)
            only = jnp.zeros(x0.shape, bool).at[:, order[i]].set(True)
            logit, lse = apply(params, xt).target(x0)
            total += np.where(only, lse - logit, 0).sum(axis=1)
        np.testing.assert_allclose(total, arrays[name], rtol=1e-4, err_msg=name)
