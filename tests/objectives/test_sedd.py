"""SEDD's losses against exact enumeration: vocabulary 3, length 3, every x0, every x_t, all times.

The exact score leaves a bound that is exact sequence by sequence: with the path x_0..x_1 of the
process, its mean over paths is -log p(x0) - KL(q(x_1 | x0), q(x_1)), for any alpha(1).
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import example_keys, step_key, stratified
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.models.readout import Readout
from ddm_jax.objectives import OBJECTIVES, radd, sedd
from ddm_jax.objectives.signature import Noise
from tests.enumerable import all_sequences, random_joint, wrong_denoiser

VOCAB, LENGTH = 3, 3
JOINT = random_joint(VOCAB, LENGTH).reshape(-1)
NLL = -np.log(JOINT)
X0 = all_sequences(VOCAB, LENGTH)
KINDS = ["absorb", "uniform"]
LOSS_AT = {"absorb": sedd.absorb_at, "uniform": sedd.uniform_at}
STATES = {"absorb": all_sequences(VOCAB + 1, LENGTH), "uniform": X0}  # the mask is token VOCAB


def make(kind, **options):
    schedule = SCHEDULES[options.pop("schedule", "log_linear")].make(**options)
    return {"absorb": Absorbing, "uniform": Uniform}[kind](schedule, VOCAB)


def matrix(kind, alpha):
    """q(x_t | x_0) of one token: float64[VOCAB, tokens]."""
    if kind == "uniform":
        return alpha * np.eye(VOCAB) + (1 - alpha) / VOCAB
    return np.hstack([alpha * np.eye(VOCAB), np.full((VOCAB, 1), 1 - alpha)])


def forward(kind, alpha):
    """q(x_t | x_0) of whole sequences: float64[x0, states]."""
    return matrix(kind, alpha)[X0[:, None], STATES[kind]].prod(-1)


def log_scores(kind, law):
    """log p_t(x_t with y at i) / p_t(x_t) under this law of the states: [states, LENGTH, VOCAB]."""
    states = STATES[kind]
    number = {tuple(x): i for i, x in enumerate(states.tolist())}
    table = np.zeros((len(states), LENGTH, VOCAB))
    for (i, x), position, y in itertools.product(
        enumerate(states.tolist()), range(LENGTH), range(VOCAB)
    ):
        other = (*x[:position], y, *x[position + 1 :])
        table[i, position, y] = np.log(law[number[other]]) - np.log(law[i])
    return table


def said(logits):
    """An `apply` whose network has answered logits[b, L, V] already."""
    readout = Readout(logits, jnp.eye(VOCAB, dtype=logits.dtype), jnp.zeros(VOCAB), VOCAB)
    return lambda params, tokens, sigma: readout


def nodes(low, high, count=48):
    """Gauss-Legendre nodes of a mean over t in [low, high], crowded at `low`: (t, weight).

    The integrands of uniform noise go like t log t at 0, those in 1 - t are smooth.
    """
    x, w = np.polynomial.legendre.leggauss(count)
    x, w = (x + 1) / 2, w / 2
    return low + (high - low) * x**4, 4 * x**3 * w


def expectation(kind, process, score, low=0.0, of="loss", **options):
    """Mean loss (or bound) of every x0 over t ~ U(low, 1) and x_t: float64[x0]; in enable_x64.

    score: (alpha) -> log scores [states, LENGTH, VOCAB].
    """
    states = STATES[kind]
    t, weight = nodes(low, 1.0)
    alpha = np.asarray(process.schedule.alpha(t))
    scores = np.stack([score(a) for a in alpha])
    chance = weight[:, None, None] * np.stack([forward(kind, a) for a in alpha])
    grid = (len(t), len(X0), len(states))
    x0 = np.broadcast_to(X0[:, None], (*grid, LENGTH)).reshape(-1, LENGTH)
    xt = np.broadcast_to(states, (*grid, LENGTH)).reshape(-1, LENGTH)
    logits = np.broadcast_to(scores[:, None], (*grid, LENGTH, VOCAB)).reshape(-1, LENGTH, VOCAB)
    times = np.broadcast_to(t[:, None, None], grid).reshape(-1)
    batch = {"tokens": jnp.asarray(x0), "valid": jnp.ones(x0.shape, bool)}
    apply = said(jnp.asarray(logits))
    out = LOSS_AT[kind](apply, {}, batch, jnp.asarray(xt), jnp.asarray(times), process, **options)
    # where x_t is impossible a loss means nothing
    return np.where(chance > 0, chance * np.asarray(getattr(out, of)).reshape(grid), 0).sum((0, 2))


def exact(kind):
    return lambda alpha: log_scores(kind, JOINT @ forward(kind, alpha))


def wrong(kind, seed=1):
    """The exact score times random factors between 1/e and e: not normalised, nor any score."""
    noise = np.random.default_rng(seed).uniform(-1, 1, (len(STATES[kind]), LENGTH, VOCAB))
    return lambda alpha: exact(kind)(alpha) + noise


RAW = {"absorb": {"scale_by_sigma": False}, "uniform": {}}  # the network's output is log s


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [0.0, 0.05])
def test_exact_score_attains_the_nll_but_for_the_last_state(kind, eps, float64):
    """-log p(x0) of every x0 where alpha(1) = 0; else KL(q(x_1 | x0), q(x_1)) is missing."""
    got = expectation(kind, make(kind, eps=eps), exact(kind), **RAW[kind])
    last = forward(kind, eps)
    marginal = JOINT @ last
    ratio = np.where(last > 0, last, 1) / np.where(last > 0, marginal, 1)
    np.testing.assert_allclose(got + (last * np.log(ratio)).sum(1), NLL, rtol=1e-6)
    if eps == 0:
        np.testing.assert_allclose(got, NLL, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bound_of_the_mean_exceeds_the_entropy_by_the_score_entropy_of_the_marginal(kind, float64):
    """SEDD theorem 3.4: the excess is E sigma Q(x_t, y) s* phi(log s - log s*), s* the true score.

    Every term of it is positive, so that a wrong score has the larger mean.
    """
    process = make(kind, eps=0.05)
    got = expectation(kind, process, wrong(kind), **RAW[kind])
    best = expectation(kind, process, exact(kind), **RAW[kind])
    excess = 0
    for t, weight in zip(*nodes(0.0, 1.0), strict=True):
        alpha, rate = 1 - 0.95 * t, 0.95 / (1 - 0.95 * t)
        law = JOINT @ forward(kind, alpha)
        true, log_s = np.exp(exact(kind)(alpha)), wrong(kind)(alpha)
        terms = np.exp(log_s) - true - true * (log_s - np.log(true))
        if kind == "uniform":
            moves = np.arange(VOCAB) != STATES[kind][..., None]
            rate = rate / VOCAB
        else:
            moves = (STATES[kind] == VOCAB)[..., None]
        excess += weight * rate * law @ (terms * moves).sum((1, 2))
    assert excess > 0.1
    np.testing.assert_allclose(JOINT @ (got - best), excess, rtol=1e-6)


@pytest.mark.parametrize(("kind", "eps"), [("absorb", 0.0), ("uniform", 0.0), ("uniform", 0.05)])
def test_mean_bound_is_the_entropy_and_what_the_prior_misses_of_the_last_state(kind, eps, float64):
    """KL(q(x_1), prior) for the exact score, and more for a wrong one."""
    got = expectation(kind, make(kind, eps=eps), exact(kind), of="bound", **RAW[kind])
    marginal = JOINT @ forward(kind, eps)
    missed = (marginal * np.log(marginal * VOCAB**LENGTH)).sum() if kind == "uniform" else 0
    np.testing.assert_allclose(JOINT @ got, JOINT @ NLL + missed, rtol=1e-6)
    loose = expectation(kind, make(kind, eps=eps), wrong(kind), of="bound", **RAW[kind])
    assert JOINT @ (loose - got) > 0.1


def test_both_scalings_of_absorbing_scores_are_the_same_loss(float64):
    process = make("absorb", eps=0.05)
    raw = expectation("absorb", process, wrong("absorb"), scale_by_sigma=False)

    def scaled(alpha):  # log s + log(e^sigma_bar - 1) + log V
        return wrong("absorb")(alpha) + np.log(VOCAB * (1 - alpha) / alpha)

    np.testing.assert_allclose(expectation("absorb", process, scaled), raw, rtol=1e-9)


def test_normalised_absorbing_score_gives_the_cross_entropy_of_radd(float64):
    """s_y = p(y) / (e^sigma_bar - 1): for every x_t, and not in expectation only."""
    process, apply = make("absorb"), wrong_denoiser(VOCAB, LENGTH)
    xt = STATES["absorb"]
    tokens = np.where(xt == VOCAB, np.random.default_rng(0).integers(0, VOCAB, xt.shape), xt)
    batch = {"tokens": jnp.asarray(tokens), "valid": jnp.ones(xt.shape, bool)}
    t = jnp.linspace(1e-3, 1, len(xt))
    want = radd.t_dce_at(lambda p, x, s=None: apply(p, x), {}, batch, jnp.asarray(xt), t, process)

    def scaled(params, tokens, sigma):
        logits = apply(params, tokens).logits() + jnp.log(VOCAB)
        return said(logits)(params, tokens, sigma)

    got = sedd.absorb_at(scaled, {}, batch, jnp.asarray(xt), t, process)
    np.testing.assert_allclose(got.loss, want.loss, rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_have_the_enumerated_mean(kind):
    """The mean of 40,000 draws lies within 5 standard errors (wrong once in 10^6) of the exact one.

    The network is wrong and hears the time. A fourth position is padding: never corrupted,
    and without loss.
    """
    count, x0 = 40_000, 17
    table = np.random.default_rng(5).normal(size=((VOCAB + 1) ** LENGTH, LENGTH, VOCAB))

    def logits(tokens, sigma):
        index = (tokens * (VOCAB + 1) ** np.arange(LENGTH)[::-1]).sum(-1)
        return jnp.asarray(table)[index] * jnp.tanh(sigma)[:, None, None]

    with jax.enable_x64(True):
        process = make(kind, eps=0.2)
        mean = expectation(
            kind,
            process,
            lambda alpha: np.asarray(
                logits(STATES[kind], jnp.full(len(STATES[kind]), -np.log(alpha)))
            ),
            low=1e-3,
        )[x0]

    padded = []

    def apply(params, tokens, sigma):
        padded.append(bool((tokens[:, -1] == 1).all()))
        answer = jnp.pad(logits(tokens[:, :-1], sigma), ((0, 0), (0, 1), (0, 0)))
        return said(answer.at[:, -1].set(3.0))(params, tokens, sigma)

    tokens = jnp.broadcast_to(jnp.append(jnp.asarray(X0[x0]), 1), (count, LENGTH + 1))
    batch = {"tokens": tokens, "valid": jnp.broadcast_to(jnp.arange(4) < LENGTH, tokens.shape)}
    key, index = step_key(0, 5), jnp.arange(count)
    noise = Noise(stratified(key, index, count), example_keys(key, index))
    name = f"sedd_{kind}"
    out = OBJECTIVES[name].loss(apply, {}, batch, noise, make(kind, eps=0.2))
    assert padded == [True]
    stderr = float(out.loss.std()) / np.sqrt(count)
    assert abs(float(out.loss.mean()) - mean) < 5 * stderr
    last = matrix("uniform", 0.2)[0]
    prior_kl = {"absorb": 0, "uniform": LENGTH * (last * np.log(last * VOCAB)).sum()}[kind]
    np.testing.assert_allclose(out.bound - out.loss, prior_kl, atol=1e-4)
    assert set(out.metrics) == set(OBJECTIVES[name].metrics)
    # 40 % of the tokens are hit on average, and two thirds of the redraws change one
    (share,) = out.metrics.values()
    want = {"absorb": 0.4, "uniform": 0.4 * (1 - 1 / VOCAB)}[kind]
    assert float(share.mean()) == pytest.approx(want, abs=5 * 0.5 / np.sqrt(count))


@pytest.mark.parametrize("schedule", ["log_linear", "geometric"])
@pytest.mark.parametrize("kind", ["masked", "stayed", "moved"])
def test_float32_is_accurate_from_the_first_moment_to_the_last(kind, schedule):
    """Relative error below 1e-4 at t = 1e-5..1, for scores within a factor e^3 of the truth."""
    vocab, draws = 1_000, 4
    make_process = Absorbing if kind == "masked" else Uniform
    t = np.repeat(np.geomspace(1e-5, 1, 21), draws).astype(np.float32)[:, None]
    x0 = np.full(t.shape, 3)
    xt = {"masked": x0 * 0 + vocab, "stayed": x0, "moved": x0 + 1}[kind]
    noise = np.random.default_rng(0).uniform(-3, 3, (len(t), 1, vocab))
    loss_at = sedd.absorb_at if kind == "masked" else sedd.uniform_at
    options = {"scale_by_sigma": False} if kind == "masked" else {}

    def loss(dtype):
        process = make_process(SCHEDULES[schedule].make(), vocab)
        alpha = np.asarray(process.schedule.alpha(jnp.float64(t)))[..., None]
        is_x0 = np.arange(vocab) == 3
        if kind == "masked":
            log_score = np.log(alpha / (1 - alpha) / vocab) + noise
        else:
            chance = alpha * is_x0 + (1 - alpha) / vocab
            log_score = np.log(chance / chance[..., xt[0]]) + noise
        # float64 reads the same rounded scores
        log_score = jnp.asarray(log_score.astype(np.float32).astype(dtype))
        eye = jnp.eye(vocab, dtype=dtype)
        readout = Readout(log_score, eye, jnp.zeros(vocab, dtype), vocab)
        batch = {"tokens": jnp.asarray(x0), "valid": jnp.ones(x0.shape, bool)}
        out = loss_at(
            lambda *_: readout,
            {},
            batch,
            jnp.asarray(xt),
            jnp.asarray(t[:, 0].astype(dtype)),
            process,
            **options,
        )
        assert out.loss.dtype == dtype
        return np.asarray(out.loss)

    with jax.enable_x64(True):
        want, got = loss(np.float64), loss(np.float32)
    assert (want > 0).all()
    np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_huge_logits_where_no_loss_is_leave_the_gradient_finite(kind):
    """At x_t itself, at tokens that are not masked, and at padding."""
    process = make(kind)
    xt = jnp.array([[0, {"absorb": VOCAB, "uniform": 1}[kind], 2]])
    batch = {"tokens": jnp.array([[0, 2, 2]]), "valid": jnp.array([[True, True, False]])}
    huge = np.zeros((1, LENGTH, VOCAB), np.float32)
    huge[0, np.arange(LENGTH), np.minimum(xt[0], 2)] = 1e3  # exp(1e3) is infinite
    huge[0, 1, 2] = 0
    if kind == "absorb":
        huge[0, 0] = 1e3

    def loss(logits):
        t = jnp.array([0.5])
        return LOSS_AT[kind](said(logits), {}, batch, xt, t, process).loss.sum()

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(huge))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert (np.asarray(gradient)[huge == 1e3] == 0).all()
