"""SEDD's score entropies, losses and gradients equal the published ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.models.readout import Readout
from ddm_jax.objectives import sedd
from tests.models.published import published_dit, state_dict_from_params

TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-4}, "float64": {"rtol": 1e-6, "atol": 1e-9}}
SCHEDULE = {"loglinear": "log_linear", "geometric": "geometric"}
CASES = ["mid", "ext0", "ext1"]
LOSS = {"absorb": (Absorbing, sedd.absorb_at), "uniform": (Uniform, sedd.uniform_at)}


def setup(oracle, kind, schedule):
    """(arrays, record, process, loss_at)."""
    arrays, meta = oracle("sedd", f"losses_{kind}")
    make, loss_at = LOSS[kind]
    # the published geometric schedule keeps its ends in float32
    ends = {"sigma_min": float(np.float32(1e-4)), "sigma_max": float(np.float32(20))}
    process = make(
        SCHEDULES[SCHEDULE[schedule]].make(**(ends if schedule == "geometric" else {})),
        meta["config"]["tokens"],
    )
    return arrays, meta, process, loss_at


def network_of(oracle, meta, dtype):
    """(apply, params) of the published weights; inside enable_x64."""
    weights, _ = oracle("sedd", "model_weights")
    model, tokens = meta["config"]["model"], meta["config"]["tokens"]
    return published_dit(weights, model, tokens, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("schedule", list(SCHEDULE))
@pytest.mark.parametrize("kind", list(LOSS))
def test_score_entropies_equal_oracle(oracle, kind, schedule, dtype):
    """Token by token, at the log scores of its network and at random ones.

    Ours in float32 too are held to the float64 ones: the published float32 is up to 1 % off.
    """
    arrays, meta, process, loss_at = setup(oracle, kind, schedule)
    options = {"scale_by_sigma": False} if kind == "absorb" else {}  # they are scaled already
    tokens = meta["config"]["tokens"]
    compared = 0
    with jax.enable_x64(True):
        for case in CASES:
            x0, xt = arrays[f"{case}_x0"], arrays[f"{case}_xt"]
            t = jnp.asarray(np.repeat(arrays[f"{case}_t"], x0.shape[1]).astype(dtype))
            rate = np.asarray(process.schedule.rate(t.astype(np.float64)))
            batch = {
                "tokens": jnp.asarray(x0.reshape(-1, 1)),
                "valid": jnp.ones((x0.size, 1), bool),
            }
            for said, want in {
                f"{case}_log_score_rand": f"{case}_{schedule}_score_entropy_rand__f64",
                f"{case}_{schedule}_log_score__f64": f"{case}_{schedule}_score_entropy__f64",
            }.items():
                if said not in arrays:
                    continue
                log_score = arrays[said][..., :tokens].reshape(-1, 1, tokens)
                eye = jnp.eye(tokens, dtype=dtype)
                answer = Readout(
                    jnp.asarray(log_score, dtype), eye, jnp.zeros(tokens, dtype), tokens
                )
                loss = loss_at(
                    lambda *_, answer=answer: answer,
                    {},
                    batch,
                    jnp.asarray(xt.reshape(-1, 1)),
                    t,
                    process,
                    **options,
                ).loss
                assert loss.dtype == dtype
                entropy = np.asarray(loss) / rate
                np.testing.assert_allclose(
                    entropy, arrays[want].reshape(-1), **TOLERANCE[dtype], err_msg=want
                )
                compared += 1
    assert compared == {"loglinear": 4, "geometric": 3}[schedule]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", list(LOSS))
def test_losses_equal_oracle(oracle, kind, dtype):
    """Through the network, which is told sigma_bar, under both schedules."""
    with jax.enable_x64(dtype == "float64"):
        apply = None
        for schedule in SCHEDULE:
            arrays, meta, process, loss_at = setup(oracle, kind, schedule)
            if apply is None:
                apply, params = network_of(oracle, meta, dtype)
                apply = jax.jit(apply)
            x0, xt, t = (
                np.concatenate([arrays[f"{case}_{name}"] for case in CASES])
                for name in ("x0", "xt", "t")
            )
            batch = {"tokens": jnp.asarray(x0), "valid": jnp.ones(x0.shape, bool)}
            t = jnp.asarray(t, dtype)
            loss = loss_at(apply, params, batch, jnp.asarray(xt), t, process).loss
            want = np.concatenate([arrays[f"{case}_{schedule}_loss__f64"] for case in CASES])
            tolerance = {"rtol": 1e-4} if dtype == "float32" else {"rtol": 1e-6}
            np.testing.assert_allclose(loss, want, **tolerance, err_msg=schedule)


@pytest.mark.parametrize("kind", list(LOSS))
def test_gradients_equal_oracle(oracle, kind):
    arrays, meta, process, loss_at = setup(oracle, kind, "loglinear")
    apply, params = network_of(oracle, meta, "float32")
    batch = {"tokens": jnp.asarray(arrays["mid_x0"]), "valid": jnp.ones((3, 16), bool)}
    xt, t = jnp.asarray(arrays["mid_xt"]), jnp.asarray(arrays["mid_t"])

    def mean_loss(params):
        return loss_at(apply, params, batch, xt, t, process).loss.mean()

    assert list(meta["grad_param_order"]) == ["mid_loglinear"]
    got = state_dict_from_params(jax.jit(jax.grad(mean_loss))(params), rows=33)
    order, norms = meta["grad_param_order"]["mid_loglinear"], arrays["mid_loglinear_grad_norms"]
    for parameter, norm in zip(order, norms, strict=True):
        ours = np.linalg.norm(got[parameter])
        np.testing.assert_allclose(ours, norm, rtol=1e-3, err_msg=parameter)
    whole = {k: v for k, v in arrays.items() if k.startswith("mid_loglinear_grad.")}
    assert len(whole) > 10
    for name, want in whole.items():
        ours = got[name.removeprefix("mid_loglinear_grad.")]
        atol = 1e-4 * np.abs(want).max()
        np.testing.assert_allclose(ours, want, rtol=1e-3, atol=atol, err_msg=name)
