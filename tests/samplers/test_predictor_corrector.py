"""Steps of the psi samplers, and those of Duo; the law of their samples is in test_laws.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from ddm_jax.diffusion import d3pm
from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.discrete_schedules import d3pm_cosine
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.predictor_corrector import mix, predictor_corrector
from ddm_jax.samplers.remasking import remask
from ddm_jax.samplers.signature import SampleSpec
from tests.models.published import published_dit
from tests.programs import RUNS_LONG

VOCAB, LENGTH = 3, 2
SCHEDULE = SCHEDULES["log_linear"].make(eps=1e-3)


@pytest.mark.parametrize("noise", ["d3pm", "alpha(0) = 0.9"])
def test_no_noise_is_left(noise):
    """A network that knows the token, and processes that redraw it until the last step."""
    process = {
        "d3pm": d3pm.uniform(d3pm_cosine(12), VOCAB),
        "alpha(0) = 0.9": Uniform(SCHEDULES["cosine"].make(eps=0.1), VOCAB),
    }[noise]

    def apply(params, tokens, sigma):
        hidden = 1e9 * jax.nn.one_hot(jnp.ones_like(tokens), VOCAB)
        return Readout(hidden, jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)

    run = functools.partial(predictor_corrector, apply, {}, process=process, kappa=0.0)
    empty = jnp.zeros((1000, LENGTH), jnp.int32)
    tokens, _ = jax.jit(run)(step_key(0, 0), empty, empty > 0, spec=SampleSpec(4))
    assert (np.asarray(tokens) == 1).all()


def test_nothing_happens_between_times_of_one_step():
    """A network that says 1, but at step 0 of two steps of noise 2, which is too late."""
    process = d3pm.uniform(d3pm_cosine(2), VOCAB)

    def apply(params, tokens, sigma):
        token = jnp.where(sigma > 0, 1, 2)[:, None]
        hidden = 1e9 * jax.nn.one_hot(jnp.broadcast_to(token, tokens.shape), VOCAB)
        return Readout(hidden, jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)

    run = functools.partial(predictor_corrector, apply, {}, process=process, kappa=0.5)
    empty = jnp.zeros((100, LENGTH), jnp.int32)
    tokens, _ = jax.jit(run)(step_key(0, 0), empty, empty > 0, spec=SampleSpec(8))
    assert (np.asarray(tokens) == 1).all()


def rules(arrays, name):
    """{rule: kappa} of an oracle's array names; the last step has s = 0."""
    found = {k.removeprefix(f"{name}_").removesuffix("_probs") for k in arrays if name in k}
    return {rule: float(rule.removeprefix("psi")) if "psi" in rule else 1.0 for rule in found}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["udlm", "mdlm"])
def test_steps_are_drawn_from_the_laws_of_the_oracle(oracle, name):
    """Each of 3,000 draws a position; the sum of all chi-squares is wrong once in 10^6."""
    arrays, meta = oracle("duo", "sampler_step")
    vocab, copies = meta["config"]["vocab"], 3000
    weights, _ = oracle("mdlm", "dit_weights")
    apply, params = published_dit(weights, meta["config"]["model"], vocab, "float32")
    x = arrays["uniform_x" if name == "udlm" else "absorb_x"]
    t = arrays["t"][:, 0].astype(np.float32)
    process = Uniform(SCHEDULE, vocab) if name == "udlm" else Absorbing(SCHEDULE, vocab - 1)
    sigma = np.asarray(process.condition(jnp.asarray(t)))
    if name == "mdlm":  # whose network is not told the time, and never says the mask
        sigma = 0 * sigma
    logits = np.asarray(apply(params, x, sigma).logits())[..., : vocab - (name == "mdlm")]

    @functools.partial(jax.jit, compiler_options=RUNS_LONG)
    def draws(x, logits, s, t, kappa):
        keys = jax.random.split(step_key(0, 0), copies)
        rows = jnp.broadcast_to(x, (copies, *x.shape))
        logits = jnp.broadcast_to(logits, (copies, *logits.shape))
        if name == "udlm":
            return mix(keys, rows, logits, process, kappa, s, t)
        eye = jnp.eye(logits.shape[-1])
        said = Readout(logits, eye, jnp.zeros(len(eye)), len(eye))
        sigma = (1 - kappa) * SCHEDULE.one_minus_alpha(s)
        fixed = jnp.zeros(rows.shape, bool)
        return remask(keys, rows, fixed, said, process, sigma, s, t, SampleSpec(1))

    found = rules(arrays, name)
    assert "ancestral" in found
    for rule, kappa in found.items():
        statistic = freedom = 0
        for row in range(len(x)):
            s = 0.0 if rule == "noise_removal" else t[row] - np.float32(arrays["dt"])
            tokens = np.asarray(draws(x[row], logits[row], np.float32(s), t[row], kappa))
            counts = (tokens[..., None] == np.arange(vocab)).sum(0)
            p = arrays[f"{name}_{rule}_probs"][row]
            expected = copies * p / p.sum(-1, keepdims=True)
            if rule == "noise_removal" and name == "mdlm":
                assert (tokens < vocab - 1).all()
            for n, e in zip(counts, expected, strict=True):
                rare = e < 5
                n, e = np.append(n[~rare], n[rare].sum()), np.append(e[~rare], e[rare].sum())
                assert n[e == 0].sum() == 0
                n, e = n[e > 1], e[e > 1]
                statistic += ((n - e) ** 2 / e).sum()
                freedom += len(n) - 1
        assert statistic < chi2.isf(1e-6, df=freedom), rule
