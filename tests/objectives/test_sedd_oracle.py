"""SEDD's score entropies, losses and gradients equal the published ones."""

import functools

import jax
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.objectives import sedd
from tests.batch import batch_of
from tests.models.published import published_dit, state_dict_from_params
from tests.objectives.enumeration import said
from tests.objectives.one_pass import losses_of

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


def all_cases(arrays, name):
    """An array of all cases, the sequences one after the other."""
    return np.concatenate([arrays[f"{case}_{name}"] for case in CASES])


def entropies(oracle, kind, schedule, log_score, x0, xt, t):
    """Our losses over their rate, one row for each token, since each has its own time."""
    _, _, process, loss_at = setup(oracle, kind, schedule)
    options = {"scale_by_sigma": False} if kind == "absorb" else {}  # they are scaled already

    @jax.jit
    def run(log_score, x0, xt, t):
        return loss_at(said(log_score), {}, batch_of(x0), xt, t, process, **options).loss

    vocab = log_score.shape[-1]
    loss = run(log_score.reshape(-1, 1, vocab), x0.reshape(-1, 1), xt.reshape(-1, 1), t.reshape(-1))
    assert loss.dtype == t.dtype
    rate = jax.jit(process.schedule.rate)(t.reshape(-1).astype(np.float64))
    return np.asarray(loss).reshape(x0.shape) / np.asarray(rate).reshape(x0.shape)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("schedule", list(SCHEDULE))
@pytest.mark.parametrize("kind", list(LOSS))
def test_score_entropies_equal_oracle(oracle, kind, schedule, dtype):
    """Token by token, at the log scores of its network and at random ones.

    Ours in float32 too are held to the float64 ones: the published float32 is up to 1 % off.
    """
    arrays, meta, _, _ = setup(oracle, kind, schedule)
    pairs = [
        (case, says, f"{case}_{schedule}_score_entropy{suffix}__f64")
        for case in CASES
        for says, suffix in (
            (f"{case}_log_score_rand", "_rand"),
            (f"{case}_{schedule}_log_score__f64", ""),
        )
        if says in arrays
    ]
    assert len(pairs) == {"loglinear": 4, "geometric": 3}[schedule]
    log_score = np.concatenate([arrays[says] for _, says, _ in pairs])
    log_score = log_score[..., : meta["config"]["tokens"]].astype(dtype)
    x0, xt, t = (np.concatenate([arrays[f"{c}_{x}"] for c, *_ in pairs]) for x in ("x0", "xt", "t"))
    with jax.enable_x64(True):
        t = np.repeat(t.astype(dtype)[:, None], x0.shape[1], axis=1)
        ours = entropies(oracle, kind, schedule, log_score, x0, xt, t)
    want = np.concatenate([arrays[want] for *_, want in pairs])
    np.testing.assert_allclose(ours, want, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", list(LOSS))
def test_losses_equal_oracle(oracle, kind, dtype):
    """Through the network, which is told sigma_bar, under both schedules."""
    arrays, meta, _, loss_at = setup(oracle, kind, "loglinear")
    processes = {schedule: setup(oracle, kind, schedule)[2] for schedule in SCHEDULE}

    with jax.enable_x64(dtype == "float64"):
        network, params = network_of(oracle, meta, dtype)

        @jax.jit
        def run(params, x0, xt, t):
            losses = {
                schedule: lambda apply, process=process: loss_at(
                    apply, {}, batch_of(x0), xt, t, process
                )
                for schedule, process in processes.items()
            }
            out = losses_of(functools.partial(network, params), xt, losses)
            return {schedule: each.loss for schedule, each in out.items()}

        t = all_cases(arrays, "t").astype(dtype)
        found = run(params, all_cases(arrays, "x0"), all_cases(arrays, "xt"), t)
    for schedule, loss in found.items():
        want = all_cases(arrays, f"{schedule}_loss__f64")
        tolerance = {"rtol": 1e-4} if dtype == "float32" else {"rtol": 1e-6}
        np.testing.assert_allclose(loss, want, **tolerance, err_msg=schedule)


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(LOSS))
def test_gradients_equal_oracle(oracle, kind):
    arrays, meta, process, loss_at = setup(oracle, kind, "loglinear")
    apply, params = network_of(oracle, meta, "float32")

    def mean_loss(params, x0, xt, t):
        return loss_at(apply, params, batch_of(x0), xt, t, process).loss.mean()

    assert list(meta["grad_param_order"]) == ["mid_loglinear"]
    given = (arrays[f"mid_{x}"] for x in ("x0", "xt", "t"))
    gradient = jax.jit(jax.grad(mean_loss))(params, *given)
    rows = len(oracle("sedd", "model_weights")[0]["vocab_embed.embedding"])
    got = state_dict_from_params(gradient, rows)
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
