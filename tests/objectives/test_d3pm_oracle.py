"""D3PM's laws and losses equal RDM's vanilla diffusions and the D3PM parameterisation of MDLM.

Other formulas, and so left out: RDM's label smoothing of its vanilla multinomial loss, and MDLM's
reconstruction term, which reads the network at t = 0.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion import d3pm as processes
from ddm_jax.diffusion.discrete_schedules import DISCRETE_SCHEDULES
from ddm_jax.models.readout import Readout
from ddm_jax.objectives import d3pm

TOLERANCE = {"": {"rtol": 1e-4, "atol": 1e-4}, "__f64": {"rtol": 1e-6, "atol": 1e-9}}
SPECIAL = 3  # bos, pad and eos: neither corrupted nor among RDM's K classes


def given(logits):
    """An `apply` whose network has said logits[b, L, V] already."""
    vocab = logits.shape[-1]
    readout = Readout(logits, jnp.eye(vocab, dtype=logits.dtype), jnp.zeros(vocab), vocab)
    return lambda params, tokens, sigma: readout


def multinomial(oracle, schedule, suffix):
    """(arrays, process on the K classes, x0, xt, t of each position, which positions count)."""
    arrays, meta = oracle("rdm", "multinomial")
    steps, vocab = meta["config"]["T"], meta["config"]["vocab"]
    alpha_bar = DISCRETE_SCHEDULES[f"rdm_{schedule}"](steps)
    process = processes.uniform(alpha_bar, vocab - SPECIAL)
    x0, xt = (jnp.maximum(jnp.asarray(arrays[k]) - SPECIAL, 0) for k in ("x0", "xt"))
    dtype = jnp.float64 if suffix else jnp.float32
    t = jnp.broadcast_to(jnp.asarray((arrays["t"][:, None] + 1) / steps, dtype), x0.shape)
    return arrays, process, x0, xt, t, arrays["non_special_sym_mask"]


def log_normalised(law):
    return np.log(law / law.sum(-1, keepdims=True))


@pytest.mark.parametrize("suffix", ["", "__f64"])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_multinomial_marginals_and_kl_equal_oracle(oracle, schedule, suffix):
    """q(x_t | x0), and the KL of a p that keeps probability for RDM's special tokens."""
    with jax.enable_x64(bool(suffix)):
        arrays, process, x0, xt, t, counts = multinomial(oracle, schedule, suffix)
        if f"{schedule}_orig_q_xt_given_x0{suffix}" in arrays:
            want = arrays[f"{schedule}_orig_q_xt_given_x0{suffix}"][..., SPECIAL:]
            got = np.log(np.asarray(process.row(x0, t))[counts])
            np.testing.assert_allclose(got, want[counts], **TOLERANCE[suffix])
        kl = step_kl(arrays, process, x0, xt, t, counts)
    kl = kl.mean(1)
    np.testing.assert_allclose(kl, arrays[f"{schedule}_orig_kl{suffix}"], **TOLERANCE[suffix])
    total = (arrays["weight_t"] * kl).mean()
    want = arrays[f"{schedule}_orig_lam-1.0_ls0.0_loss{suffix}"]
    np.testing.assert_allclose(total, want, **TOLERANCE[suffix])


def step_kl(arrays, process, x0, xt, t, counts):
    """KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) of the ordinary tokens: float[b, L]."""
    p = jax.nn.softmax(jnp.asarray(arrays["logits"], t.dtype))[..., SPECIAL:]
    s = t - 1 / process.schedule.count
    kl = d3pm.divergence(process.column(xt, s, t), process.row(x0, s), process.marginal(p, s))
    return np.where(counts, kl, 0)


@pytest.mark.parametrize("suffix", ["", "__f64"])
def test_simple_multinomial_loss_is_the_cross_entropy_at_the_first_step(oracle, suffix):
    """RDM's "simple" form puts x0 itself for q(x_0 | x_1, x0), and p(x0) for p(x_0 | x_1)."""
    with jax.enable_x64(bool(suffix)):
        arrays, process, x0, xt, t, counts = multinomial(oracle, "cosine", suffix)
        kl = step_kl(arrays, process, x0, xt, t, counts)
        logit, lse = given(jnp.asarray(arrays["logits"], t.dtype))({}, xt, t).target(arrays["x0"])
        ce = np.where(counts, lse - logit, 0)
    first = arrays["t"] == 0
    assert first.any()
    loss = np.where(first, ce.mean(1), kl.mean(1))
    np.testing.assert_allclose(loss, arrays[f"cosine_simple_kl{suffix}"], **TOLERANCE[suffix])
    for weight, lam in ((0.0, "-1.0"), (0.5, "0.5")):
        total = (arrays["weight_t"] * (loss + weight * ce.mean(1))).mean()
        want = arrays[f"cosine_simple_lam{lam}_ls0.0_loss{suffix}"]
        np.testing.assert_allclose(total, want, **TOLERANCE[suffix])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_multinomial_posteriors_over_any_stride_equal_oracle(oracle, schedule):
    """q(x_{t-k} | x_t, x0), one k for all and one for each; p(x_{t-2} | x_t); q(x_t | x_{t-2})."""
    arrays, process, x0, xt, t, counts = multinomial(oracle, schedule, "")
    steps = process.schedule.count
    k_tensor = np.broadcast_to(arrays["k_tensor"][:, None], x0.shape)
    seen = 0
    for name, k, suffix in (
        ("posterior_k1", 1, ""),
        ("posterior_k1", 1, "__f64"),
        ("posterior_ktensor", k_tensor, ""),
        ("p_logit_k2", 2, ""),
        ("q_xt_given_xtm2", 2, ""),
    ):
        key = f"{schedule}_orig_{name}{suffix}"
        if key not in arrays:
            continue
        with jax.enable_x64(bool(suffix)):
            s = jnp.asarray(t - k / steps, jnp.float64 if suffix else jnp.float32)
            to_xt = np.asarray(process.column(xt, s, t))
            p = jax.nn.softmax(jnp.asarray(arrays["logits"]))[..., SPECIAL:]
            of_xs = process.marginal(p, s) if name == "p_logit_k2" else process.row(x0, s)
        ours = np.log(to_xt) if "xtm2" in name else log_normalised(to_xt * np.asarray(of_xs))
        # RDM's log 0 is -69 or log 1e-9: an event that cannot be is neither's to tell
        exists = counts[..., None] & np.isfinite(ours) & (t - k / steps > -1e-6)[..., None]
        want = arrays[key][..., SPECIAL:]
        tolerance = TOLERANCE[suffix]
        np.testing.assert_allclose(ours[exists], want[exists], **tolerance, err_msg=key)
        assert (want[counts[..., None] & np.isneginf(ours)] < -15).all()
        seen += exists.any()
    assert seen >= 3


@pytest.mark.parametrize("suffix", ["", "__f64"])
def test_simple_cross_entropy_equals_oracle(oracle, suffix):
    """RDM's auxiliary loss: the mean over positions, times the weight of the time."""
    with jax.enable_x64(bool(suffix)):
        arrays, _ = oracle("rdm", "multinomial")
        process = processes.uniform(DISCRETE_SCHEDULES["rdm_cosine"](20), 32)
        x0 = jnp.asarray(arrays["x0"])
        batch = {"tokens": x0, "valid": jnp.asarray(arrays["non_special_sym_mask"])}
        logits = jnp.asarray(arrays["logits"], jnp.float64 if suffix else jnp.float32)
        t = jnp.asarray((arrays["t"] + 1) / 20)
        xt = jnp.asarray(arrays["xt"])
        loss = d3pm.d3pm_ce_at(given(logits), {}, batch, xt, t, process).loss
    ours = arrays["weight_t"] * loss / x0.shape[1]
    want = arrays[f"cosine_orig_lam0.5_ce{suffix}"]
    np.testing.assert_allclose(ours, want, **TOLERANCE[suffix])


@pytest.mark.parametrize("suffix", ["", "__f64"])
def test_absorbing_losses_equal_oracle(oracle, suffix):
    """RDM means over positions and leaves out T; its auxiliary CE counts every position."""
    arrays, meta = oracle("rdm", "losses_absorbing")
    steps, mask_id = meta["config"]["T"], meta["config"]["specials"]["unk_mask"]
    with jax.enable_x64(bool(suffix)):
        process = processes.absorbing(DISCRETE_SCHEDULES["rdm_linear"](steps), mask_id)
        x0, xt = jnp.asarray(arrays["x0"]), jnp.asarray(arrays["xt"])
        logits = jnp.asarray(arrays["logits"], jnp.float64 if suffix else jnp.float32)
        t = jnp.asarray((arrays["t"] + 1) / steps, logits.dtype)
        valid = {"masked": jnp.asarray(arrays["masks"]), "all": jnp.ones(x0.shape, bool)}
        out = {
            name: d3pm.d3pm_at(
                given(logits), {}, {"tokens": x0, "valid": v}, xt, t, process, ce_weight=0.5
            )
            for name, v in valid.items()
        }
        out = jax.device_get(out)
    per_example = out["masked"].bound / steps / x0.shape[1]
    want = arrays[f"absorbing_per_example{suffix}"]
    np.testing.assert_allclose(per_example, want, **TOLERANCE[suffix])
    nll = (arrays["weight_t"] * per_example).mean()
    want = arrays[f"absorbing_lam-1.0_ls0.0_loss{suffix}"]
    np.testing.assert_allclose(nll, want, **TOLERANCE[suffix])
    ce = 2 * (out["all"].loss - out["all"].bound) / x0.shape[1]
    ce = (arrays["weight_t"] * ce).mean()
    np.testing.assert_allclose(
        ce, arrays[f"absorbing_lam0.5_ls0.0_ce{suffix}"], **TOLERANCE[suffix]
    )
    want = arrays[f"absorbing_lam0.5_ls0.0_loss{suffix}"]
    np.testing.assert_allclose(nll + 0.5 * ce, want, **TOLERANCE[suffix])


@pytest.mark.parametrize(("case", "steps"), [("mid_d3pm_T", 20), ("mid_d3pm_T1000", 1000)])
def test_kl_of_a_network_that_predicts_masks_equals_oracle(oracle, case, steps, float64):
    """MDLM's D3PM gives the mask a share of p(x0): the KL of explicit absorbing matrices.

    The published numbers are differences of float32 logs, times T: they keep two digits less for
    1000 steps. What the network said is kept in float32 and for these two cases only.
    """
    arrays, _ = oracle("mdlm", "losses")
    p = np.exp(arrays[f"{case}_model_output"].astype(np.float64))
    mask_id = p.shape[-1] - 1
    x0, xt = arrays["mid_x0"], arrays["mid_xt"]
    t = np.round(arrays[f"{case}_t_quantised"].astype(np.float64) * steps) / steps
    t, s = t[:, None, None], t[:, None, None] - 1 / steps
    eye = np.eye(mask_id + 1)

    def marginal(p):
        return (1 - s) * p + s * eye[mask_id]

    stay = (1 - t) / (1 - s)
    to_xt = stay * eye[xt] + (1 - stay) * (xt == mask_id)[..., None]
    kl = d3pm.divergence(*map(jnp.asarray, (to_xt, marginal(eye[x0]), marginal(p))))
    masked = xt == mask_id
    ours, want = steps * np.asarray(kl)[masked], arrays[f"{case}_d3pm_term"][masked]
    np.testing.assert_allclose(ours, want, rtol=1e-6 * steps, atol=1e-5)
