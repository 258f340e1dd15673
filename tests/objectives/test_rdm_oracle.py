"""RDM's losses and corruptions equal those its authors' code makes, from its logits and uniforms.

Theirs are means over all positions of a row, ours sums. Left out: the label smoothing of the
vanilla multinomial loss, over tokens whose noise does not matter, which none of ours has.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion import absorbing as masks
from ddm_jax.diffusion import d3pm
from ddm_jax.diffusion.discrete_schedules import DISCRETE_SCHEDULES
from ddm_jax.objectives import rdm
from ddm_jax.objectives.signature import Noise
from tests.batch import batch_of, noise_of
from tests.objectives.enumeration import said

TOLERANCE = {"": {"rtol": 1e-4, "atol": 1e-4}, "__f64": {"rtol": 1e-6, "atol": 1e-9}}
SPECIALS = ("bos", "pad", "eos")
WEIGHTINGS = ("linear", "reciprocal", "none")


@functools.partial(jax.jit, static_argnums=0)
def losses_of(process, logits, batch, xt, t, smoothing):
    """The loss of each weighting."""
    given = said(logits), {}, batch, xt, t, process
    return {name: rdm.rdm_at(*given, name, smoothing).loss for name in WEIGHTINGS}


def losses(arrays, config, process, logits, weighting, smoothing):
    """Ours over T and over the length of a row: (float[b]; their batch mean, weights and all)."""
    batch, t = (
        batch_of(arrays["x0"], arrays["non_special_sym_mask"]),
        (arrays["t"] + 1) / config["T"],
    )
    found = losses_of(process, logits, batch, arrays["xt"], t.astype(logits.dtype), smoothing)
    each = np.asarray(found[weighting]) / config["T"] / arrays["x0"].shape[1]
    return each, (arrays["weight_t"] * each).mean()


@functools.cache
def process_of(kind, steps, size, suffix=""):
    """The process under test: one object for each precision, whose programs are compiled once."""
    if kind == "absorbing":
        return d3pm.absorbing(DISCRETE_SCHEDULES["rdm_linear"](steps), size)
    return d3pm.uniform(DISCRETE_SCHEDULES["rdm_cosine"](steps), size)


@pytest.mark.parametrize("suffix", ["", "__f64"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_absorbing_losses_equal_oracle(oracle, weighting, suffix):
    """Their vanilla loss is that of the reciprocal weighting, smoothed in the same way."""
    arrays, record = oracle("rdm", "losses_absorbing")
    config = record["config"]
    process = process_of("absorbing", config["T"], config["specials"]["unk_mask"], suffix)
    logits = arrays["logits"].astype("float64" if suffix else "float32")
    with jax.enable_x64(bool(suffix)):
        plain, (_, smoothed) = (
            losses(arrays, config, process, logits, weighting, smoothing)
            for smoothing in (0.0, 0.1)
        )
    names = [f"reparam_{weighting}"] + ["absorbing"] * (weighting == "reciprocal")
    for name in names:
        lam = "_lam-1.0" if name == "absorbing" else ""
        want = {
            f"{name}_per_example": plain[0],
            f"{name}{lam}_ls0.0_loss": plain[1],
            f"{name}{lam}_ls0.1_nll": plain[1],
            f"{name}{lam}_ls0.1_loss": smoothed,
        }
        for key, ours in want.items():
            np.testing.assert_allclose(ours, arrays[key + suffix], **TOLERANCE[suffix])


@pytest.mark.parametrize("suffix", ["", "__f64"])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_multinomial_losses_equal_oracle(oracle, weighting, suffix):
    """They rule the special tokens out with logits of -30, but smooth over what was said of them.

    Ours smooths over the tokens that the network can say. So the smoothing is read from the logits
    as they were, and the cross entropy from those filled in.
    """
    arrays, record = oracle("rdm", "reparam_multinomial")
    config = record["config"]
    process = process_of("uniform", config["T"], config["vocab"], suffix)
    logits = arrays["logits"].astype("float64" if suffix else "float32")
    filled = logits.copy()
    filled[..., [config["specials"][name] for name in SPECIALS]] = -30
    with jax.enable_x64(bool(suffix)):
        (each, plain), (_, unfilled), (_, smoothed) = (
            losses(arrays, config, process, given, weighting, smoothing)
            for given, smoothing in ((filled, 0.0), (logits, 0.0), (logits, 0.1))
        )
    seen = 0
    for kind in ("cosine_uniform", "linear_unigram"):  # the noise is in x_t alone
        want = {
            f"{kind}_{weighting}_per_example": each,
            f"{kind}_{weighting}_ls0.0_loss": plain,
            f"{kind}_{weighting}_ls0.1_loss": smoothed + 0.9 * (plain - unfilled),
        }
        for key, ours in want.items():
            np.testing.assert_allclose(ours, arrays[key + suffix], **TOLERANCE[suffix])
            seen += 1
    assert seen == 6


def test_masks_and_pairs_of_masks_equal_oracle(oracle, monkeypatch):
    """`pair` itself under their uniforms; a mask of theirs stays where u2 > (t - s) / t."""
    arrays, record = oracle("rdm", "q_sample")
    config = record["config"]
    steps, mask_id = config["T"], config["specials"]["unk_mask"]
    process = process_of("absorbing", steps, mask_id)
    x0, valid = arrays["x0"], arrays["non_special_sym_mask"]

    def mask(u, x0, chance, valid):
        return masks.mask_below(u, x0, chance, mask_id, movable=valid)

    chance = np.float32((arrays["t"] + 1) / steps)
    xt = jax.jit(mask)(arrays["absorbing_u"], x0, chance, valid)
    np.testing.assert_array_equal(xt, arrays["absorbing_xt"])

    u1, u2 = (arrays[f"absorbing_coupled_{u}"] for u in ("u1", "u2"))
    of_corrupt = iter([u1, u2])
    monkeypatch.setattr(masks, "uniforms", lambda *_: jnp.asarray(next(of_corrupt)))
    monkeypatch.setattr(d3pm, "uniforms", lambda *_: jnp.asarray(1 - u2))
    monkeypatch.setattr(rdm, "uniforms", lambda *_: jnp.asarray((arrays["t2"] + 0.5) / steps))
    noise = Noise(np.float32((arrays["t"] + 0.5) / steps), noise_of(len(x0)).keys)
    run = jax.jit(lambda batch, noise: rdm.pair(batch, noise, process, "coupled"))
    got, times = jax.device_get(run(batch_of(x0, valid), noise))
    np.testing.assert_array_equal(got.reshape(-1, x0.shape[1]), arrays["absorbing_coupled_xt"])
    np.testing.assert_allclose(times.ravel() * steps - 1, arrays["absorbing_coupled_t"], atol=1e-5)


def test_redraws_and_pairs_of_redraws_equal_oracle(oracle):
    """Their races of Gumbel noise, run on our laws: q(x_t | x0), and x_s given x_t and x0."""
    arrays, record = oracle("rdm", "q_sample")
    config = record["config"]
    steps, ordinary = config["T"], config["vocab"] - len(SPECIALS)
    first = config["vocab"] - ordinary
    x0, valid = arrays["x0"], arrays["non_special_sym_mask"]
    process = process_of("uniform", steps, ordinary)
    ids = np.maximum(x0 - first, 0)
    row, chances = jax.jit(process.row), jax.jit(process.bridge_chances)

    def times(t):
        return np.broadcast_to(np.float32((t[:, None] + 1) / steps), x0.shape)

    def race(law, u):
        u = u[..., first:]
        gumbel = -np.log(-np.log(u + 1e-10) + 1e-10)
        return np.where(valid, (gumbel + np.log(law)).argmax(-1) + first, x0)

    law = np.asarray(row(ids, times(arrays["t"])))
    for kind in ("multinomial", "reparam_multinomial"):
        np.testing.assert_array_equal(race(law, arrays[f"{kind}_u"]), arrays[f"{kind}_xt"])
    later, earlier = np.maximum(arrays["t"], arrays["t2"]), np.minimum(arrays["t"], arrays["t2"])
    np.testing.assert_array_equal(np.append(later, earlier), arrays["multinomial_coupled_t"])
    theirs_t, theirs_s = np.split(arrays["multinomial_coupled_xt"], 2)
    law = np.asarray(row(ids, times(later)))
    np.testing.assert_array_equal(race(law, arrays["multinomial_coupled_u1"]), theirs_t)

    xt, (s, t) = np.maximum(theirs_t - first, 0), (times(x) for x in (earlier, later))
    redrawn, shown = (np.asarray(x)[..., None] for x in chances(ids, xt, s, t))
    given = redrawn / ordinary + shown * np.eye(ordinary)[ids]
    given = given + (1 - redrawn - shown) * np.eye(ordinary)[xt]
    apart = (earlier != later)[:, None, None]
    law = np.where(apart, given, np.asarray(row(ids, s)))
    np.testing.assert_array_equal(race(law, arrays["multinomial_coupled_u2"]), theirs_s)
    assert apart.any()
    assert not apart.all()
