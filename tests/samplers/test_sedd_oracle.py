"""SEDD's analytic and Euler steps, and RADD's Euler steps, equal the published ones.

The published steps end at t = 1e-5 and the denoiser follows from there; ours end at 0, and the
denoiser is the last of them. So what is compared is the law of a step, on the published times.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.config import ModelConfig
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.models.network import make_network, padded_vocab
from ddm_jax.samplers.analytic import analytic_law, from_masks
from ddm_jax.samplers.euler import euler_law, euler_x0_law
from tests.models.published import params_from_state_dict, published_dit

TOLERANCE = {"float32": {"rtol": 1e-4, "atol": 1e-4}, "float64": {"rtol": 1e-6, "atol": 1e-7}}
PROCESS = {"absorb": Absorbing, "uniform": Uniform}
LAW = {"analytic": analytic_law, "euler": euler_law}
EPS = 1e-5  # where the published steps end
# the published geometric schedule keeps its ends in float32
GEOMETRIC = {"sigma_min": float(np.float32(1e-4)), "sigma_max": float(np.float32(20))}


def schedule(name):
    if name == "geometric":
        return SCHEDULES[name].make(**GEOMETRIC)
    return SCHEDULES["log_linear"].make()


def step_law(law, logits, xt, s, t, dtype, states):
    """p(x_s | x_t) of each position, [B, L, states], the mask last where there is one.

    As published it may be negative at x_t, where the rest exceeds 1. s, t: [B, 1].
    """
    with jax.enable_x64(True):
        xt, vocab = jnp.asarray(xt), logits.shape[-1]
        s, t = jnp.asarray(s, dtype), jnp.asarray(t, dtype)
        chance, where_to = law(jnp.asarray(logits, dtype), xt, s, t)
        assert chance.dtype == where_to.dtype == dtype
        chance, jump = chance[..., None], jax.nn.softmax(where_to, axis=-1)
        jump = jnp.pad(jump, ((0, 0), (0, 0), (0, states - vocab)))
        return np.asarray((1 - chance) * jax.nn.one_hot(xt, states, dtype=dtype) + chance * jump)


def as_law(weights, states):
    """What the published race makes of weights that do not sum to 1: negative ones never win.

    The published denoiser leaves out the mask.
    """
    weights = np.maximum(weights, 0)
    weights = np.pad(weights, ((0, 0), (0, 0), (0, states - weights.shape[-1])))
    return weights / weights.sum(-1, keepdims=True)


def assert_wins(token, weights, u):
    """The recorded token wins the published race, up to what float32 loses."""
    race = weights / (1e-10 - np.log(u + 1e-10))
    won = np.take_along_axis(race, token[..., None], axis=-1)[..., 0]
    assert (won >= (1 - 1e-3) * race.max(-1)).all()


def step_cases():
    """(array of weights, array of scores it is from or its case, time, step, rule)."""
    for rule in LAW:
        for name in ("loglinear", "geometric"):
            yield f"mid_{name}_{rule}_probs", "mid", name, rule, "mid_step_size"
        for case in ("late", "first", "last"):
            yield f"{case}_loglinear_{rule}_probs", case, "loglinear", rule, f"{case}_step_size"
        for case, name in (("mid", "loglinear"), ("mid", "geometric"), ("eps", "loglinear")):
            yield f"denoiser_{case}_{name}_probs", case, name, rule, None


def network(oracle, meta, dtype):
    """The published network: (tokens, sigma[B]) -> logits [B, L, V]; inside enable_x64."""
    weights, _ = oracle("sedd", "model_weights")
    apply, params = published_dit(weights, meta["config"]["model"], meta["config"]["tokens"], dtype)
    return lambda x, sigma: apply(params, jnp.asarray(x), jnp.asarray(sigma, dtype)).logits()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", list(PROCESS))
def test_laws_of_the_steps_equal_oracle(oracle, kind, dtype):
    """Through its network too; ours in float32 is held to the published float64, where there is."""
    arrays, meta = oracle("sedd", f"sampler_step_{kind}")
    vocab = meta["config"]["tokens"]
    states = vocab + (kind == "absorb")
    scaled = meta["config"]["model"]["scale_by_sigma"]
    compared = []
    for probs, case, name, rule, step in step_cases():
        if dtype == "float64" and f"{probs}__f64" not in arrays:
            continue
        process = PROCESS[kind](schedule(name), vocab)
        t = arrays[f"{case}_t" if step else f"denoiser_{case}_t"].reshape(-1, 1)
        s = t.astype(np.float64) - arrays[step] if step else np.zeros(t.shape)
        with jax.enable_x64(True):
            logits = network(oracle, meta, dtype)(
                arrays["x"], process.schedule.sigma_bar(t[:, 0].astype(np.float64))
            )
        law = LAW[rule](process, scale_by_sigma=scaled)
        ours = step_law(law, logits, arrays["x"], s, t, dtype, states)
        want = arrays.get(f"{probs}__f64", arrays[probs])
        if kind == "absorb" and step:
            # nothing is cut off: negative ones are alike
            np.testing.assert_allclose(ours, want, **TOLERANCE[dtype], err_msg=probs)
        ours, want = (as_law(x, states) for x in (ours, want))
        np.testing.assert_allclose(ours, want, **TOLERANCE[dtype], err_msg=f"{probs} {rule}")
        compared.append(probs)
    assert len(compared) >= 8


@pytest.mark.parametrize("rule", list(LAW))
@pytest.mark.parametrize("kind", list(PROCESS))
@pytest.mark.slow
def test_decisions_of_a_trajectory_equal_oracle(oracle, kind, rule):
    """Every step from its recorded state with its recorded uniforms, the denoiser at the end."""
    arrays, meta = oracle("sedd", f"sampler_traj_{kind}")
    process = PROCESS[kind](schedule("loglinear"), meta["config"]["tokens"])
    law = LAW[rule](process, scale_by_sigma=meta["config"]["model"]["scale_by_sigma"])
    states = meta["config"]["tokens"] + (kind == "absorb")
    steps = len(arrays[f"{rule}_u"])
    t = np.append(np.linspace(1, EPS, steps + 1), 0)
    sequences = [*arrays[f"{rule}_x_before"], arrays[f"{rule}_x_final"]]
    assert len(sequences) == steps + 2
    uniforms = [*arrays[f"{rule}_u"], arrays[f"{rule}_denoise_u"]]
    weights = dict(zip(arrays["probs_steps"], arrays[f"{rule}_probs"], strict=True))
    weights[steps] = arrays[f"{rule}_denoise_probs"]
    changed = 0
    for i, u in enumerate(uniforms):
        x, after = sequences[i], sequences[i + 1]
        now, then = (np.full((len(x), 1), time) for time in t[i : i + 2])
        with jax.enable_x64(True):
            sigma = process.schedule.sigma_bar(jnp.asarray(now[:, 0]))
            logits = network(oracle, meta, "float32")(x, sigma)
        ours = step_law(law, logits, x, then, now, "float32", states)
        if i in weights:
            want = as_law(weights[i], states)
            np.testing.assert_allclose(
                as_law(ours, states), want, **TOLERANCE["float32"], err_msg=i
            )
        ours = ours[..., : u.shape[-1]]  # the denoiser has no mask
        assert_wins(after, ours, u)
        changed += (x != after).sum()
    assert changed > x.size / 2


@pytest.mark.parametrize("rule", ["tweedie", "euler"])
def test_decisions_of_direct_sampling_equal_oracle(oracle, rule):
    """RADD's, through its network: the Euler rule, and the chance that `ancestral` has."""
    arrays, meta = oracle("radd", "sampler_direct")
    weights, _ = oracle("radd", "model_weights")
    model, tokens = meta["config"]["model"], meta["config"]["tokens"]
    states = tokens + 1
    config = ModelConfig(
        width=model["hidden_size"], depth=model["n_blocks"], heads=model["n_heads"], time="none"
    )
    params = params_from_state_dict(weights, config.heads, padded_vocab(tokens))
    apply = jax.jit(make_network(config, tokens).apply)
    process = Absorbing(schedule(meta["config"]["noise"]["type"]), tokens)

    def ancestral_law(logits, xt, s, t):
        return from_masks(process, process.reveal(s, t), xt, s), logits

    law = {"tweedie": ancestral_law, "euler": euler_x0_law(process)}[rule]
    steps = len(arrays[f"{rule}_rates"])
    t = np.linspace(1, EPS, steps + 1)
    for i in range(steps):
        x, u, want = (arrays[f"{rule}_{name}"][i] for name in ("x_before", "u", "probs"))
        now, then = (np.full((len(x), 1), time) for time in t[i : i + 2])
        if i == steps - 1:  # theirs reveals all, as ours
            then = 0 * then
        else:
            masks = np.full((1, 1), tokens)
            chance, _ = law(jnp.zeros((1, 1, tokens)), masks, then[:1], now[:1])
            np.testing.assert_allclose(chance, arrays[f"{rule}_rates"][i], rtol=1e-4)
        ours = step_law(law, apply(params, x).logits(), x, then, now, "float32", states)
        masked = x == tokens
        want = as_law(np.where(masked[..., None], want, 1), states)
        np.testing.assert_allclose(ours[masked], want[masked], **TOLERANCE["float32"])
        assert_wins(arrays[f"{rule}_x_after"][i][masked], ours[masked], u[masked])


@pytest.mark.parametrize("steps", [4, 32])
@pytest.mark.parametrize("name", ["loglinear", "geometric"])
def test_reveal_rates_equal_oracle(oracle, name, steps):
    """RADD's Euler rule on its times."""
    arrays, _ = oracle("radd", "update_rate")
    law = euler_x0_law(Absorbing(schedule(name), 1))
    mask, logits = np.ones(steps, int), np.zeros((steps, 1))
    for dtype, suffix in (("float32", ""), ("float64", "__f64")):
        t = arrays[f"timesteps_{steps}__f64"]
        with jax.enable_x64(True):
            s, t = (jnp.asarray(time, dtype) for time in (t[1:], t[:-1]))
            chance, _ = law(jnp.asarray(logits, dtype), mask, s, t)
        want = arrays[f"{name}_euler_{steps}{suffix}"]
        np.testing.assert_allclose(chance, want, **TOLERANCE[dtype])


def test_laws_of_steps_of_mdlm_equal_oracle(oracle):
    """Its analytic sampler and denoiser, from the scores that it records."""
    arrays, meta = oracle("mdlm", "sampler_step")
    x = arrays["x"]
    vocab = arrays["mid_sedd_score"].shape[-1] - 1
    states = vocab + 1
    assert (x == vocab).any()
    process = Absorbing(schedule(meta["config"]["noise"]["type"]), vocab)
    t, dt = arrays["mid_t"].reshape(-1, 1).astype(np.float64), arrays["mid_dt"]
    law = analytic_law(process, scale_by_sigma=False)
    for model in ("sedd", "subs_time"):
        masked = (x == vocab)[..., None]
        log_score = np.log(np.where(masked, arrays[f"mid_{model}_score"], 1)[..., :vocab])
        for step, s in (("analytic", t - dt), ("denoiser", 0 * t)):
            ours = step_law(law, log_score, x, s, t, "float32", states)
            want = as_law(arrays[f"mid_{model}_{step}_probs"], states)
            np.testing.assert_allclose(
                as_law(ours, states), want, **TOLERANCE["float32"], err_msg=f"{model} {step}"
            )
