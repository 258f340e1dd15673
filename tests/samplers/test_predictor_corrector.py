"""The psi samplers against the exactly computed law of their chain, and their steps against Duo's.

Vocabulary 3, two positions, exact networks as in test_ancestral_redraws; chi-squares reject the
right law once in 10^6.
"""

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
from tests.enumerable import all_sequences, conditionals, random_joint
from tests.laws import absorbing_law, chi_square
from tests.models.published import published_dit
from tests.plug_in import leave_one_out, uniform_matrix

VOCAB, LENGTH, COUNT, STEPS, KAPPA = 3, 2, 100_000, 5, 0.2
JOINT = random_joint(VOCAB, LENGTH, seed=3)
EPS = 1e-3
SCHEDULE = SCHEDULES["log_linear"].make(eps=EPS)
PROCESSES = {"absorbing": Absorbing(SCHEDULE, VOCAB), "uniform": Uniform(SCHEDULE, VOCAB)}


def matrix_at(name, t):
    """q(x_t | x_0), float64[S, S], with the mask last; no noise at t = 0."""
    tau = (1 - EPS) * t
    if name == "uniform":
        return uniform_matrix(tau, VOCAB)
    to_mask = np.zeros((VOCAB + 1, VOCAB + 1))
    to_mask[:, VOCAB] = 1
    return (1 - tau) * np.eye(VOCAB + 1) + tau * to_mask


def clean_at(name, t, joint=JOINT):
    """What the exact network says in every state: float64[S^L, L, V]."""
    size = len(matrix_at(name, t))
    if name == "uniform":
        return leave_one_out(joint, matrix_at(name, t))
    return conditionals(joint, all_sequences(size, LENGTH))


def network(name, steps):
    """The exact one at the times of the sampler, told apart by sigma."""
    p = np.stack([clean_at(name, 1 - i / steps) for i in range(steps)])
    table = jnp.log(jnp.asarray(np.maximum(p, 1e-30), jnp.float32))
    size = len(matrix_at(name, 1))

    def apply(params, tokens, sigma):
        step = jnp.round((1 - SCHEDULE.time(sigma)) * steps).astype(int)
        hidden = table[step, tokens @ jnp.array([size, 1])]
        return Readout(hidden, jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)

    return apply


def posterior(name, p, s, t):
    """q(x_s | x_t, x_0 ~ p) by Bayes' rule in every state: float64[S^L, L, S]."""
    m_s, m_t = matrix_at(name, s), matrix_at(name, t)
    states = all_sequences(len(m_t), LENGTH)
    forward = np.linalg.solve(m_s, m_t)
    if name == "absorbing":  # a token of x_t is x_0
        p = np.where((states == VOCAB)[..., None], p, np.eye(VOCAB + 1)[states][..., :VOCAB])
    moves = (p @ m_s[:VOCAB]) * forward.T[states]
    return moves / moves.sum(-1, keepdims=True)


def law_of_chain(name, steps, kappa, fixed=None, joint=JOINT):
    """p(x) after `steps` steps: float64[V^L]. fixed: (position, token) that stays."""
    size = len(matrix_at(name, 1))
    states = all_sequences(size, LENGTH)
    prior = np.eye(size)[VOCAB] if name == "absorbing" else np.full(VOCAB, 1 / VOCAB)
    law = prior[states]
    if fixed:
        law[:, fixed[0]] = states[:, fixed[0]] == fixed[1]
    law = law.prod(1)
    for i in range(steps):
        t, s = 1 - i / steps, (steps - 1 - i) / steps
        p = clean_at(name, t, joint)
        moves = kappa * posterior(name, p, s, t)
        moves += (1 - kappa) * posterior(name, p, 0, t) @ matrix_at(name, s)
        if fixed:
            moves[:, fixed[0]] = np.eye(size)[fixed[1]]
        law = law @ moves[:, np.arange(LENGTH), states].prod(-1)
    clean = (states < VOCAB).all(1)
    np.testing.assert_allclose(law[clean].sum(), 1)
    return law[clean]


@functools.cache
def jitted(name, steps, kappa):
    return jax.jit(
        functools.partial(
            predictor_corrector, network(name, steps), {}, process=PROCESSES[name], kappa=kappa
        )
    )


def sample(name, steps, kappa, prompt=None, fixed=None, seed=0):
    prompt = np.zeros((COUNT, LENGTH), np.int32) if prompt is None else prompt
    fixed = np.zeros(prompt.shape, bool) if fixed is None else fixed
    run = jitted(name, steps, kappa)
    spec = SampleSpec(jnp.int32(steps))
    tokens, stats = run(step_key(seed, 0), jnp.asarray(prompt), jnp.asarray(fixed), spec=spec)
    np.testing.assert_array_equal(stats.nfe, steps)
    return np.asarray(tokens)


@pytest.mark.parametrize("name", PROCESSES)
def test_samples_follow_the_law_of_the_chain(name):
    """And are not taken for ancestral ones, nor for those of another kappa."""
    tokens = sample(name, STEPS, KAPPA)
    statistic, limit = chi_square(tokens, law_of_chain(name, STEPS, KAPPA))
    assert statistic < limit
    for kappa in (1, 1 - KAPPA):
        statistic, limit = chi_square(tokens, law_of_chain(name, STEPS, kappa))
        assert statistic > limit


def test_kappa_1_is_the_ancestral_law():
    law = law_of_chain("absorbing", STEPS, 1)
    np.testing.assert_allclose(law, absorbing_law(JOINT, STEPS, [VOCAB] * LENGTH), atol=1e-12)


@pytest.mark.parametrize("name", PROCESSES)
def test_law_of_the_chain_tends_to_the_joint(name):
    """As one over the steps where kappa is 1, over their root where it is less.

    Of a joint whose rare sequences are not so rare that they hide the rate.
    """
    joint = JOINT / 2 + 1 / (2 * VOCAB**LENGTH)

    def far(steps, kappa):
        law = law_of_chain(name, steps, kappa, joint=joint)
        return abs(law - joint.reshape(-1)).sum() / 2

    assert far(64, 1) / far(256, 1) == pytest.approx(4, rel=0.05)
    assert far(64, 0.5) / far(256, 0.5) == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("name", PROCESSES)
def test_fixed_positions_stay_and_the_rest_follows_given_them(name):
    prompt = np.full((COUNT, LENGTH), 2, np.int32)
    fixed = np.broadcast_to([False, True], prompt.shape)
    tokens = sample(name, STEPS, KAPPA, prompt, fixed)
    assert (tokens[:, 1] == 2).all()
    law = law_of_chain(name, STEPS, KAPPA, (1, 2))
    statistic, limit = chi_square(tokens, law)
    assert statistic < limit


@pytest.mark.parametrize("name", PROCESSES)
def test_sequence_depends_on_the_key_and_its_number_alone(name):
    prompt = np.random.default_rng(0).integers(0, VOCAB, (64, LENGTH)).astype(np.int32)
    fixed = np.random.default_rng(1).random(prompt.shape) < 0.3
    tokens = sample(name, STEPS, KAPPA, prompt, fixed)
    np.testing.assert_array_equal(tokens[fixed], prompt[fixed])
    few = sample(name, STEPS, KAPPA, prompt[:5], fixed[:5])
    np.testing.assert_array_equal(few, tokens[:5])
    others = np.concatenate([prompt[:5], 1 - prompt[5:] % 2])
    np.testing.assert_array_equal(sample(name, STEPS, KAPPA, others, fixed)[:5], tokens[:5])
    assert (sample(name, STEPS, KAPPA, prompt, fixed, seed=1) != tokens).any()


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


@pytest.mark.parametrize("name", ["udlm", "mdlm"])
def test_steps_are_drawn_from_the_laws_of_the_oracle(oracle, name):
    """Each of 3,000 draws a position; the sum of all chi-squares is wrong once in 10^6."""
    arrays, meta = oracle("duo", "sampler_step")
    vocab, copies = meta["config"]["vocab"], 3000
    weights, _ = oracle("mdlm", "dit_weights")
    apply, params = published_dit(weights, meta["config"]["model"], vocab, "float32")
    x = jnp.asarray(arrays["uniform_x" if name == "udlm" else "absorb_x"])
    t = arrays["t"][:, 0].astype(np.float32)
    process = Uniform(SCHEDULE, vocab) if name == "udlm" else Absorbing(SCHEDULE, vocab - 1)
    sigma = process.condition(jnp.asarray(t))
    if name == "mdlm":  # whose network is not told the time, and never says the mask
        sigma = jnp.zeros_like(sigma)
    logits = apply(params, x, sigma).logits()[..., : vocab - (name == "mdlm")]

    @functools.partial(jax.jit, static_argnames="kappa")
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
            tokens = np.asarray(draws(x[row], logits[row], jnp.float32(s), t[row], kappa))
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
