"""The block mask, the losses and the networks of block diffusion equal the published ones."""

import functools

import jax
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.attention_masks import block_diffusion
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.objectives import bd3lm
from tests.batch import batch_of
from tests.models.published import published_dit

TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-4}, "float64": {"rtol": 1e-6, "atol": 1e-5}}
CASES = {"bs4": 4, "bs4_time": 4, "bs8": 8}
# the published log-linear schedule has no eps: the chance of a mask is t, and the weight 1 / t
SCHEDULE = SCHEDULES["log_linear"].make(eps=0.0)


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


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def loss_and_logits(apply, vocab, size, params, sigma, x0, xt, t):
    """Of each sequence, and of each position of x_t."""
    said = []

    def told(params, tokens, **kwargs):
        said.append(apply(params, tokens, sigma, **kwargs))
        return said[-1]

    process = Absorbing(SCHEDULE, vocab)
    out = bd3lm.bd3lm_at(told, params, batch_of(x0), xt, t, process, size)
    return out.loss, said[0].span(0, x0.shape[1]).logits()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_losses_and_logits_equal_oracle(oracle, case, dtype):
    """Per sequence. The published code leaves position 0 clean, as its beginning of sequence."""
    arrays, _ = oracle("bd3lms", "model_loss")
    with jax.enable_x64(dtype == "float64"):
        apply, params, vocab = network(oracle, dtype)
        sigma = arrays[f"{case}_sigma"][:, 0] * ("time" in case)
        x0, xt, t = (arrays[f"{case}_{name}"] for name in ("x0", "xt", "t"))
        xt = np.where(np.arange(xt.shape[1]) == 0, x0, xt)
        given = params, sigma.astype(dtype), x0, xt, t.astype(dtype)
        loss, logits = jax.device_get(loss_and_logits(apply, vocab, CASES[case], *given))
    suffix = "__f64" if dtype == "float64" else ""
    want = arrays[f"{case}_loss{suffix}"].sum(axis=1)
    np.testing.assert_allclose(loss, want, **TOLERANCE[dtype])
    if dtype == "float32":
        want = arrays[f"{case}_logits"][..., :vocab]
        np.testing.assert_allclose(logits, want, **TOLERANCE[dtype])


@functools.partial(jax.jit, static_argnums=(0, 1))
def sampling_log_p(apply, size, params, prefix, sigma):
    """log p of each position under the mask of the clean tokens."""
    length = prefix.shape[1]
    attend = block_diffusion(length, size)[length:, length:]
    return jax.nn.log_softmax(apply(params, prefix, sigma, attend=attend).logits())


@pytest.mark.parametrize("case", CASES)
def test_network_in_sampling_equals_oracle(oracle, case):
    """The block-causal pass over a prefix, and the law of a step from t = 0.6 to 0.5."""
    arrays, _ = oracle("bd3lms", "model_loss")
    apply, params, vocab = network(oracle, "float32")
    prefix, size = arrays[f"{case}_prefix"], CASES[case]
    masked = prefix == vocab

    def log_p(sigma):
        sigma = np.full(len(prefix), sigma * ("time" in case), np.float32)
        return np.asarray(sampling_log_p(apply, size, params, prefix, sigma))

    want = arrays[f"{case}_sample_mode_log_probs"][..., :vocab]
    np.testing.assert_allclose(log_p(0.7)[masked], want[masked], rtol=1e-4, atol=1e-4)

    process, t, s = Absorbing(SCHEDULE, vocab), 0.6, 0.5
    p = np.exp(log_p(-np.log(1 - t)))[:, -size:]
    reveal, stay = jax.jit(lambda: (process.reveal(s, t), process.stay_masked(s, t)))()
    ours = np.append(reveal * p, stay + 0 * p[..., :1], axis=-1)
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
        both = jax.jit(lambda t: (-schedule.weight(t), schedule.one_minus_alpha(t)))
        ours, masked = both(t)
    np.testing.assert_allclose(ours, arrays[f"{name}_loss_scaling__f64"][uncut], rtol=1e-6)
    np.testing.assert_allclose(masked, chance[uncut], rtol=1e-6)
