"""The block mask, the losses and the networks of block diffusion equal the published ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.attention_masks import block_diffusion
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.objectives import bd3lm
from tests.models.published import published_dit

TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-4}, "float64": {"rtol": 1e-6, "atol": 1e-5}}
CASES = {"bs4": 4, "bs4_time": 4, "bs8": 8}
# the published log-linear schedule has no eps: the chance of a mask is t, and the weight 1 / t
SCHEDULE = SCHEDULES["log_linear"].make(eps=0.0)


@functools.cache
def network(oracle, dtype):
    """(apply, params, vocab); without time conditioning published ones keep adaLN, at sigma = 0."""
    weights, _ = oracle("mdlm", "dit_weights")
    arrays, meta = oracle("bd3lms", "model_loss")
    model, vocab = meta["config"]["model"], arrays["bs4_logits"].shape[-1] - 1
    return *published_dit(weights, model, vocab, dtype), vocab


def test_mask_equals_oracle(oracle):
    arrays, _ = oracle("bd3lms", "mask")
    for size in (1, 4, 8, 16):
        want = arrays[f"mask_n16_bs{size}"]
        np.testing.assert_array_equal(block_diffusion(16, size), want)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_logits_equal_oracle(oracle, case, dtype):
    """Per sequence. The published code leaves position 0 clean, as its beginning of sequence."""
    arrays, _ = oracle("bd3lms", "model_loss")
    with jax.enable_x64(dtype == "float64"):
        apply, params, vocab = network(oracle, dtype)
        sigma = arrays[f"{case}_sigma"][:, 0] * ("time" in case)
        x0, t = (jnp.asarray(arrays[f"{case}_{name}"]) for name in ("x0", "t"))
        xt = jnp.asarray(arrays[f"{case}_xt"]).at[:, 0].set(x0[:, 0])
        said = []

        def told(params, tokens, **kwargs):
            said.append(apply(params, tokens, jnp.asarray(sigma, dtype), **kwargs))
            return said[-1]

        batch = {"tokens": x0, "valid": jnp.ones(x0.shape, bool)}
        process = Absorbing(SCHEDULE, vocab)
        t = t.astype(dtype)
        out = bd3lm.bd3lm_at(told, params, batch, xt, t, process, CASES[case])
        logits = np.asarray(said[0].span(0, x0.shape[1]).logits())
    suffix = "__f64" if dtype == "float64" else ""
    want = arrays[f"{case}_loss{suffix}"].sum(axis=1)
    np.testing.assert_allclose(out.loss, want, **TOLERANCE[dtype])
    if dtype == "float32":
        want = arrays[f"{case}_logits"][..., :vocab]
        np.testing.assert_allclose(logits, want, **TOLERANCE[dtype])


@pytest.mark.parametrize("case", CASES)
def test_network_in_sampling_equals_oracle(oracle, case):
    """The block-causal pass over a prefix, and the law of a step from t = 0.6 to 0.5."""
    arrays, _ = oracle("bd3lms", "model_loss")
    apply, params, vocab = network(oracle, "float32")
    prefix, size = jnp.asarray(arrays[f"{case}_prefix"]), CASES[case]
    length = prefix.shape[1]
    attend = block_diffusion(length, size)[length:, length:]  # that of the clean tokens
    masked = np.asarray(prefix == vocab)

    def log_p(sigma):
        sigma = jnp.full(len(prefix), sigma * ("time" in case))
        return jax.nn.log_softmax(apply(params, prefix, sigma, attend=attend).logits())

    want = arrays[f"{case}_sample_mode_log_probs"][..., :vocab]
    np.testing.assert_allclose(log_p(0.7)[masked], want[masked], rtol=1e-4, atol=1e-4)

    process, t, s = Absorbing(SCHEDULE, vocab), 0.6, 0.5
    p = np.exp(log_p(-np.log(1 - t)))[:, -size:]
    ours = np.append(process.reveal(s, t) * p, process.stay_masked(s, t) + 0 * p[..., :1], axis=-1)
    want = arrays[f"{case}_ddpm_t0.6_dt0.1_probs"]
    last = masked[:, -size:]
    assert last.any()
    np.testing.assert_allclose(ours[last], want[last], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "schedule"),
    {
        "loglinear": SCHEDULE,
        "square": SCHEDULES["polynomial"].make(k=2, eps=0.0),
        "square_root": SCHEDULES["polynomial"].make(k=0.5, eps=0.0),
    }.items(),
)
def test_noise_equals_oracle(oracle, name, schedule):
    """Where the published chance is not cut off at 1e-3; all published runs are log-linear.

    Its cosine adds an eps of its own, and its logarithmic schedule is not among ours.
    """
    arrays, _ = oracle("bd3lms", "noise")
    chance = arrays[f"{name}_move_chance__f64"]
    uncut = chance > 1e-3
    with jax.enable_x64(True):
        t = arrays["t__f64"][uncut]
        ours = -schedule.weight(t)
        np.testing.assert_allclose(ours, arrays[f"{name}_loss_scaling__f64"][uncut], rtol=1e-6)
        np.testing.assert_allclose(schedule.one_minus_alpha(t), chance[uncut], rtol=1e-6)
