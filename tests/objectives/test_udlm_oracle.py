"""UDLM's loss, schedules and sampling law equal those that Duo publishes (its DUO_BASE)."""

import jax
import numpy as np
import pytest

from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.objectives.udlm import udlm_at
from tests.batch import batch_of
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
@pytest.mark.parametrize("schedule", ["loglinear", "cosine"])
def test_loss_of_every_token_equals_oracle(oracle, schedule, dtype):
    """Each token as a sequence of its own; also in float32 against the published float64 run."""
    arrays, meta = oracle("duo", "losses")
    vocab = meta["config"]["vocab"]
    tokens = [all_cases(arrays, x).reshape(-1, 1) for x in TOKENS]
    logits, t = all_cases(arrays, "rand_logits").astype(dtype), all_cases(arrays, "t")
    t = np.repeat(t.astype(np.float64), logits.shape[1]) * (1 - EPS * (schedule == "cosine"))
    given = logits.reshape(-1, 1, vocab), *tokens, t.astype(dtype)
    with jax.enable_x64(dtype == "float64"):
        loss = loss_of(udlm_at, process(schedule, vocab), *given).loss
    want = all_cases(arrays, f"udlm_{schedule}_rand__f64").reshape(-1)
    np.testing.assert_allclose(loss, want, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_loss_with_the_network_equals_oracle(oracle, dtype):
    arrays, meta = oracle("duo", "losses")
    vocab = meta["config"]["vocab"]
    made = process("loglinear", vocab)
    with jax.enable_x64(dtype == "float64"):
        apply, params = network(oracle, vocab, dtype)

        @jax.jit
        def run(params, x0, xt, t):
            return udlm_at(apply, params, batch_of(x0), xt, t, made).loss

        loss = run(
            params, *(all_cases(arrays, x) for x in TOKENS), all_cases(arrays, "t").astype(dtype)
        )
    np.testing.assert_allclose(loss, all_cases(arrays, LOSS).sum(axis=1), **TOLERANCE[dtype])


def all_cases(arrays, name):
    """An array of all cases, the sequences one after the other."""
    return np.concatenate([arrays[f"{case}_{name}"] for case in CASES])


@pytest.mark.parametrize("schedule", ["loglinear", "cosine"])
def test_schedules_equal_oracle(oracle, schedule):
    arrays, _ = oracle("duo", "noise")
    t = arrays["t__f64"] * (1 - EPS) if schedule == "cosine" else arrays["t__f64"]
    with jax.enable_x64(True):
        ours = process(schedule, 2).schedule
        alpha, slope = jax.jit(lambda t: (ours.alpha(t), -ours.rate(t) * ours.alpha(t)))(t)
    np.testing.assert_allclose(alpha, arrays[f"{schedule}_alpha__f64"], rtol=1e-6)
    np.testing.assert_allclose(slope, arrays[f"{schedule}_dalpha__f64"], rtol=1e-6, atol=1e-12)


def test_law_of_a_step_equals_oracle(oracle):
    """The published rule runs in float64 on p from float32 logits; its last step goes to 0."""
    arrays, meta = oracle("duo", "sampler_step")
    vocab = meta["config"]["vocab"]
    apply, params = network(oracle, vocab, "float32")
    xt, t = arrays["uniform_x"], arrays["t"][:, 0]
    made = process("loglinear", vocab)

    @jax.jit
    def said(params, xt, t):
        return apply(params, xt, made.condition(t)).logits()

    @jax.jit
    @jax.vmap
    def law(xt, logits, s, t):
        return jax.nn.softmax(made.reverse_logits(xt, logits, s, t), axis=-1)

    logits, t = np.float64(said(params, xt, t)), t.astype(np.float64)
    for rule, s in (("ancestral", t - float(arrays["dt"])), ("noise_removal", 0 * t)):
        want = arrays[f"udlm_{rule}_probs"]
        with jax.enable_x64(True):
            np.testing.assert_allclose(law(xt, logits, s, t), want, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(want.sum(-1), 1, rtol=1e-5)
