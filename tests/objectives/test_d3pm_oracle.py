"""D3PM's laws and losses equal RDM's vanilla diffusions and the D3PM parameterisation of MDLM.

Other formulas, and so left out: RDM's label smoothing of its vanilla multinomial loss, and MDLM's
reconstruction term, which reads the network at t = 0.
"""

import functools

import jax
import numpy as np
import pytest
from scipy.special import logsumexp

from ddm_jax.diffusion import d3pm as processes
from ddm_jax.diffusion.discrete_schedules import DISCRETE_SCHEDULES
from ddm_jax.objectives import d3pm
from tests.batch import batch_of
from tests.objectives.enumeration import said

TOLERANCE = {"": {"rtol": 1e-4, "atol": 1e-4}, "__f64": {"rtol": 1e-6, "atol": 1e-9}}
SPECIAL = 3  # bos, pad and eos: neither corrupted nor among RDM's K classes


@functools.cache
def uniform(schedule, steps, size, suffix):
    """The process under test: one object for each precision, whose programs are compiled once."""
    return processes.uniform(DISCRETE_SCHEDULES[f"rdm_{schedule}"](steps), size)


def multinomial(oracle, schedule, suffix):
    """(arrays, process on the K classes, x0, xt, t of each position, which positions count)."""
    arrays, meta = oracle("rdm", "multinomial")
    steps, vocab = meta["config"]["T"], meta["config"]["vocab"]
    process = uniform(schedule, steps, vocab - SPECIAL, suffix)
    x0, xt = (np.maximum(arrays[k] - SPECIAL, 0) for k in ("x0", "xt"))
    t = ((arrays["t"][:, None] + 1) / steps).astype("float64" if suffix else "float32")
    return arrays, process, x0, xt, np.broadcast_to(t, x0.shape), arrays["non_special_sym_mask"]


@functools.partial(jax.jit, static_argnums=0)
def laws_of(process, logits, x0, xt, s, t):
    """q(x_t | x_s), q(x_s | x0), sum_x0 q(x_s | x0) p(x0) and q(x_t | x0), float[b, L, K] each.

    And the KL of the step, float[b, L]. The network says RDM's special tokens too, which are first.
    """
    p = jax.nn.softmax(logits)
    to_xt, of_x0 = process.column(xt, s, t), process.row(x0, s)
    of_p = process.marginal(p[..., SPECIAL:], s)
    kl = d3pm.divergence(to_xt, of_x0, of_p)
    return (to_xt, of_x0, of_p, process.row(x0, t)), kl


def log_normalised(law):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(law / law.sum(-1, keepdims=True))


def laws_of_step(arrays, process, x0, xt, t, k=1):
    """`laws_of` at s = t - k / T."""
    s = (t - k / process.schedule.count).astype(t.dtype)
    given = arrays["logits"].astype(t.dtype), x0, xt, s, t
    with jax.enable_x64(t.dtype == np.float64):
        return jax.device_get(laws_of(process, *given))


@pytest.mark.parametrize("suffix", ["", "__f64"])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_multinomial_marginals_and_kl_equal_oracle(oracle, schedule, suffix):
    """q(x_t | x0), and the KL of a p that keeps probability for RDM's special tokens."""
    arrays, process, x0, xt, t, counts = multinomial(oracle, schedule, suffix)
    (*_, of_xt), kl = laws_of_step(arrays, process, x0, xt, t)
    if f"{schedule}_orig_q_xt_given_x0{suffix}" in arrays:
        want = arrays[f"{schedule}_orig_q_xt_given_x0{suffix}"][..., SPECIAL:]
        np.testing.assert_allclose(np.log(of_xt)[counts], want[counts], **TOLERANCE[suffix])
    kl = np.where(counts, kl, 0).mean(1)
    np.testing.assert_allclose(kl, arrays[f"{schedule}_orig_kl{suffix}"], **TOLERANCE[suffix])
    total = (arrays["weight_t"] * kl).mean()
    want = arrays[f"{schedule}_orig_lam-1.0_ls0.0_loss{suffix}"]
    np.testing.assert_allclose(total, want, **TOLERANCE[suffix])


@pytest.mark.parametrize("suffix", ["", "__f64"])
def test_simple_multinomial_loss_is_the_cross_entropy_at_the_first_step(oracle, suffix):
    """RDM's "simple" form puts x0 itself for q(x_0 | x_1, x0), and p(x0) for p(x_0 | x_1)."""
    arrays, process, x0, xt, t, counts = multinomial(oracle, "cosine", suffix)
    _, kl = laws_of_step(arrays, process, x0, xt, t)
    logits = arrays["logits"].astype(t.dtype)
    ce = logsumexp(logits, axis=-1)
    ce = ce - np.take_along_axis(logits, arrays["x0"][..., None], axis=-1)[..., 0]
    kl, ce = np.where(counts, kl, 0), np.where(counts, ce, 0)
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
    arrays, *_ = multinomial(oracle, schedule, "")
    seen = 0
    for name, k, suffix in (
        ("posterior_k1", 1, ""),
        ("posterior_k1", 1, "__f64"),
        ("posterior_ktensor", arrays["k_tensor"][:, None], ""),
        ("p_logit_k2", 2, ""),
        ("q_xt_given_xtm2", 2, ""),
    ):
        key = f"{schedule}_orig_{name}{suffix}"
        if key not in arrays:
            continue
        _, process, x0, xt, t, counts = multinomial(oracle, schedule, suffix)
        (to_xt, of_x0, of_p, _), _ = laws_of_step(arrays, process, x0, xt, t, k)
        of_xs = of_p if name == "p_logit_k2" else of_x0
        with np.errstate(divide="ignore", invalid="ignore"):
            ours = np.log(to_xt) if "xtm2" in name else log_normalised(to_xt * of_xs)
        # RDM's log 0 is -69 or log 1e-9: an event that cannot be is neither's to tell
        s = t - k / process.schedule.count
        exists = counts[..., None] & np.isfinite(ours) & (s > -1e-6)[..., None]
        want = arrays[key][..., SPECIAL:]
        tolerance = TOLERANCE[suffix]
        np.testing.assert_allclose(ours[exists], want[exists], **tolerance, err_msg=key)
        assert (want[counts[..., None] & np.isneginf(ours)] < -15).all()
        seen += exists.any()
    assert seen >= 3


@pytest.mark.parametrize("suffix", ["", "__f64"])
def test_simple_cross_entropy_equals_oracle(oracle, suffix):
    """RDM's auxiliary loss: the mean over positions, times the weight of the time."""
    arrays, meta = oracle("rdm", "multinomial")
    steps = meta["config"]["T"]
    process = uniform("cosine", steps, meta["config"]["vocab"], suffix)
    dtype = "float64" if suffix else "float32"

    @jax.jit
    def run(logits, batch, xt, t):
        return d3pm.d3pm_ce_at(said(logits), {}, batch, xt, t, process).loss

    batch, t = batch_of(arrays["x0"], arrays["non_special_sym_mask"]), (arrays["t"] + 1) / steps
    with jax.enable_x64(bool(suffix)):
        loss = run(arrays["logits"].astype(dtype), batch, arrays["xt"], t.astype(dtype))
    ours = arrays["weight_t"] * np.asarray(loss) / arrays["x0"].shape[1]
    want = arrays[f"cosine_orig_lam0.5_ce{suffix}"]
    np.testing.assert_allclose(ours, want, **TOLERANCE[suffix])


@pytest.mark.parametrize("suffix", ["", "__f64"])
def test_absorbing_losses_equal_oracle(oracle, suffix):
    """RDM means over positions and leaves out T; its auxiliary CE counts every position."""
    arrays, meta = oracle("rdm", "losses_absorbing")
    steps, mask_id = meta["config"]["T"], meta["config"]["specials"]["unk_mask"]
    process = processes.absorbing(DISCRETE_SCHEDULES["rdm_linear"](steps), mask_id)
    dtype, length = "float64" if suffix else "float32", arrays["x0"].shape[1]

    @jax.jit
    def run(logits, batch, xt, t):
        return d3pm.d3pm_at(said(logits), {}, batch, xt, t, process, ce_weight=0.5)

    t = ((arrays["t"] + 1) / steps).astype(dtype)
    with jax.enable_x64(bool(suffix)):
        masked, everywhere = (
            jax.device_get(
                run(arrays["logits"].astype(dtype), batch_of(arrays["x0"], v), arrays["xt"], t)
            )
            for v in (arrays["masks"], True)
        )
    per_example = masked.bound / steps / length
    want = arrays[f"absorbing_per_example{suffix}"]
    np.testing.assert_allclose(per_example, want, **TOLERANCE[suffix])
    nll = (arrays["weight_t"] * per_example).mean()
    want = arrays[f"absorbing_lam-1.0_ls0.0_loss{suffix}"]
    np.testing.assert_allclose(nll, want, **TOLERANCE[suffix])
    ce = 2 * (everywhere.loss - everywhere.bound) / length
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
    kl = jax.jit(d3pm.divergence)(to_xt, marginal(eye[x0]), marginal(p))
    masked = xt == mask_id
    ours, want = steps * np.asarray(kl)[masked], arrays[f"{case}_d3pm_term"][masked]
    np.testing.assert_allclose(ours, want, rtol=1e-6 * steps, atol=1e-5)
