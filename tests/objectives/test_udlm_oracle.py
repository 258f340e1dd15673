"""UDLM's loss, schedules and sampling law equal those that Duo publishes (its DUO_BASE)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.objectives.udlm import udlm_at
from tests.models.published import published_dit
from tests.objectives.enumeration import loss_of

TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-4}, "float64": {"rtol": 1e-6, "atol": 1e-9}}
CASES = ["mid", "ext0", "ext1"]
TOKENS, LOSS = ("uniform_x0", "uniform_xt"), "udlm_loglinear_model__f64"
EPS = 1e-3


def process(schedule, vocab):
    # Duo's cosine is 1 - cos at (1 - eps) t, and its derivative is by that argument, not by t
    if schedule == "cosine":
        return Uniform(SCHEDULES["cosine"].make(eps=0.0), vocab)
    return Uniform(SCHEDULES["log_linear"].make(eps=EPS), vocab)


def network(oracle, vocab, dtype):
    weights, _ = oracle("mdlm", "dit_weights")
    _, meta = oracle("duo", "losses")
    model = meta["config"]["model"]
    return published_dit(weights, model, vocab, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("schedule", ["loglinear", "cosine"])
def test_loss_of_every_token_equals_oracle(oracle, schedule, case, dtype):
    """Each token as a sequence of its own; also in float32 against the published float64 run."""
    arrays, meta = oracle("duo", "losses")
    vocab = meta["config"]["vocab"]
    with jax.enable_x64(dtype == "float64"):
        tokens = [arrays[f"{case}_uniform_{x}"].reshape(-1, 1) for x in ("x0", "xt")]
        logits = jnp.asarray(arrays[f"{case}_rand_logits"], dtype)
        t = jnp.asarray(arrays[f"{case}_t"].astype(np.float64), dtype)
        t = jnp.repeat(t * (1 - EPS) if schedule == "cosine" else t, logits.shape[1])
        run = process(schedule, vocab)
        loss = loss_of(udlm_at, run, logits.reshape(-1, 1, vocab), *tokens, t).loss
    want = arrays[f"{case}_udlm_{schedule}_rand__f64"].reshape(-1)
    np.testing.assert_allclose(loss, want, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loss_with_the_network_equals_oracle(oracle, dtype):
    arrays, meta = oracle("duo", "losses")
    vocab = meta["config"]["vocab"]
    stacked = {x: np.concatenate([arrays[f"{c}_{x}"] for c in CASES]) for x in ("t", *TOKENS, LOSS)}
    with jax.enable_x64(dtype == "float64"):
        apply, params = network(oracle, vocab, dtype)
        x0, xt = (jnp.asarray(stacked[x]) for x in TOKENS)
        batch = {"tokens": x0, "valid": jnp.ones(x0.shape, bool)}
        t = jnp.asarray(stacked["t"].astype(np.float64), dtype)
        run = process("loglinear", vocab)
        loss = jax.jit(lambda params: udlm_at(apply, params, batch, xt, t, run).loss)(params)
    np.testing.assert_allclose(loss, stacked[LOSS].sum(axis=1), **TOLERANCE[dtype])


@pytest.mark.parametrize("schedule", ["loglinear", "cosine"])
def test_schedules_equal_oracle(oracle, schedule):
    arrays, _ = oracle("duo", "noise")
    t = arrays["t__f64"] * (1 - EPS) if schedule == "cosine" else arrays["t__f64"]
    with jax.enable_x64(True):
        ours = process(schedule, 2).schedule
        alpha, slope = ours.alpha(t), -ours.rate(t) * ours.alpha(t)
    np.testing.assert_allclose(alpha, arrays[f"{schedule}_alpha__f64"], rtol=1e-6)
    np.testing.assert_allclose(slope, arrays[f"{schedule}_dalpha__f64"], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("rule", ["ancestral", "noise_removal"])
def test_law_of_a_step_equals_oracle(oracle, rule):
    """The published rule runs in float64 on p from float32 logits."""
    arrays, meta = oracle("duo", "sampler_step")
    vocab = meta["config"]["vocab"]
    apply, params = network(oracle, vocab, "float32")
    xt, t = jnp.asarray(arrays["uniform_x"]), arrays["t"]
    run = process("loglinear", vocab)
    logits = jax.jit(lambda: apply(params, xt, run.condition(jnp.asarray(t[:, 0]))).logits())()
    logits = np.asarray(logits)
    want = arrays[f"udlm_{rule}_probs"]
    with jax.enable_x64(True):
        for row, at in enumerate(t[:, 0].astype(np.float64)):
            s = 0.0 if rule == "noise_removal" else at - float(arrays["dt"])
            law = run.reverse_logits(xt[row], jnp.asarray(logits[row], "float64"), s, at)
            law = jax.nn.softmax(law, axis=-1)
            np.testing.assert_allclose(law, want[row], rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(want[row].sum(-1), 1, rtol=1e-5)
