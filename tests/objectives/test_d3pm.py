"""D3PM's losses against exact enumeration: vocabulary 3, length 2, every x0, every x_t, every t."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion import d3pm_gaussian, d3pm_nearest
from ddm_jax.diffusion.randomness import example_keys, step_key, stratified
from ddm_jax.models.readout import Readout
from ddm_jax.objectives import OBJECTIVES, d3pm
from ddm_jax.objectives.signature import Noise
from tests import chains
from tests.enumerable import all_sequences, random_joint

VOCAB, LENGTH, STEPS = 3, 2, 4
JOINT = random_joint(VOCAB, LENGTH).reshape(-1)
X0 = all_sequences(VOCAB, LENGTH)
ONE_HOT = np.eye(VOCAB)[X0]


def states(name):
    return VOCAB + (name == "absorbing")


def leave_one_out(name, steps):
    """p(x0_i | x_t at the other position), t = 1..T: float64[T, S^2, L, V]."""
    product, joint = chains.products(name, steps, VOCAB), JOINT.reshape(VOCAB, VOCAB)
    xt = all_sequences(states(name), LENGTH)
    out = np.zeros((steps, len(xt), LENGTH, VOCAB))
    for t in range(1, steps + 1):
        seen = product[t][:VOCAB]  # from x0 to x_t
        of_first, of_second = (joint @ seen)[:, xt[:, 1]].T, (joint.T @ seen)[:, xt[:, 0]].T
        out[t - 1] = np.stack([of_first, of_second], axis=1)
    total = out.sum(-1, keepdims=True)
    return np.divide(out, total, out=np.full_like(out, 1 / VOCAB), where=total > 0)


def wrong(name, steps):
    """A denoiser that answers every state and time at random: float64[T, S^2, L, V]."""
    shape = steps, states(name) ** LENGTH, LENGTH
    return np.random.default_rng(1).dirichlet(np.ones(VOCAB), size=shape)


def network(name, p):
    """apply(params, tokens, sigma) that looks the time and the state up; params: log p."""
    size = states(name)

    def apply(params, tokens, sigma):
        t = sigma.astype(int) - 1
        log_p = params[t, tokens[:, 0] * size + tokens[:, 1]]
        dtype = log_p.dtype
        return Readout(log_p, jnp.eye(VOCAB, dtype=dtype), jnp.zeros(VOCAB, dtype), VOCAB)

    return apply


def everything(name, steps):
    """Every (x0, x_t, t) and q(x_t | x0) / T: int[N, L], int[N, L], float[N], float[T * S^2, 9]."""
    product, xt = chains.products(name, steps, VOCAB), all_sequences(states(name), LENGTH)
    of_xt = product[1:][:, X0, xt[:, None]].prod(-1)  # [T, S^2, 9]
    t = np.repeat(np.arange(1, steps + 1) / steps, len(xt) * len(X0))
    x0 = np.tile(X0, (steps * len(xt), 1))
    return x0, np.tile(np.repeat(xt, len(X0), 0), (steps, 1)), t, of_xt.reshape(-1, 9) / steps


def expected(name, p, ce_weight=0.0, simple=False):
    """(E loss, E bound) over t and x_t for each x0: float64[9]; simple CE has no bound."""
    steps = len(p)
    with jax.enable_x64(True):
        process = chains.make(name, steps, VOCAB)
        x0, xt, t, weight = everything(name, steps)
        batch = {"tokens": jnp.asarray(x0), "valid": jnp.ones(x0.shape, bool)}
        options = {} if simple else {"ce_weight": ce_weight}
        loss_at = d3pm.d3pm_ce_at if simple else d3pm.d3pm_at
        at = functools.partial(loss_at, network(name, p), process=process, **options)
        out = jax.jit(at)(np.log(p), batch, xt=xt, t=t)
        # what cannot happen may be anything but not a number
        return [
            x if x is None else (weight * np.asarray(x).reshape(-1, 9)).sum(0)
            for x in (out.loss, out.bound)
        ]


def reverse_laws(name, p):
    """p(x_{t-1, i} | x_t) by explicit matrices, t = 1..T: float64[T, S^2, L, S]."""
    chain, product = (f(name, len(p), VOCAB) for f in (chains.one_step, chains.products))
    xt = all_sequences(states(name), LENGTH)
    to_xt = np.stack([q.T[xt] for q in chain])
    law = to_xt * np.einsum("tnlv,tvs->tnls", p, product[:-1, :VOCAB])
    total = law.sum(-1, keepdims=True)
    return np.divide(law, total, out=np.full_like(law, np.nan), where=total > 0)


def bound_by_matrices(name, p):
    """L_vb of D3PM eq. 1 for each x0, with every law by Bayes' rule: float64[9]."""
    chain, product = (f(name, len(p), VOCAB) for f in (chains.one_step, chains.products))
    xt, law, total = all_sequences(states(name), LENGTH), reverse_laws(name, p), np.zeros(9)
    for x, x0 in enumerate(X0):
        for i in range(LENGTH):
            last, prior = product[-1][x0[i]], chains.prior(name, VOCAB)
            total[x] += (last[last > 0] * np.log(last[last > 0] / prior[last > 0])).sum()
        for t in range(1, len(p) + 1):
            for n, state in enumerate(xt):
                chance = product[t][x0, state].prod()
                for i in range(LENGTH if chance > 0 else 0):
                    q = product[t - 1][x0[i]] * chain[t - 1][:, state[i]]
                    q, p_s = q / q.sum(), law[t - 1, n, i]
                    total[x] += chance * (q[q > 0] * np.log(q[q > 0] / p_s[q > 0])).sum()
    return total


def nll_of_chain(name, p):
    """-log p(x0) of the reverse Markov chain, states enumerated: float64[9]."""
    size, law = states(name), reverse_laws(name, p)
    xs = all_sequences(size, LENGTH)
    p_x = chains.prior(name, VOCAB)[xs].prod(1)
    for t in range(len(p), 0, -1):
        moves = np.nan_to_num(law[t - 1])[:, np.arange(LENGTH), xs].prod(-1)
        p_x = p_x @ moves
    np.testing.assert_allclose(p_x.sum(), 1, rtol=1e-9)
    return -np.log(p_x[(xs < VOCAB).all(1)])


@pytest.mark.parametrize("name", chains.NAMES)
def test_bound_is_that_of_explicit_matrices_and_above_the_nll_of_the_chain(name):
    """For a denoiser that is wrong everywhere; equal term by term, above for every sequence."""
    p = wrong(name, STEPS)
    loss, bound = expected(name, p)
    np.testing.assert_allclose(bound, bound_by_matrices(name, p), rtol=1e-8)
    np.testing.assert_array_equal(loss, bound)
    assert (bound > nll_of_chain(name, p) - 1e-9).all()
    assert (JOINT * (bound + np.log(JOINT))).sum() > 0.1


@pytest.mark.parametrize("name", chains.NAMES)
def test_bound_of_the_exact_denoiser_tends_to_the_nll_as_one_over_the_steps(name):
    gap = []
    for steps in (48, 96):
        _, bound = expected(name, leave_one_out(name, steps))
        gap.append((JOINT * (bound + np.log(JOINT))).sum())
    assert gap[0] > gap[1] > 0
    if name == "gaussian":  # beta changes with T, so that its steps shrink at another rate
        assert gap[1] < 0.1
    else:
        assert gap[1] < 0.03
        assert 1.8 < gap[0] / gap[1] < 2.2


@pytest.mark.parametrize("ce_weight", [0.0, 0.3])
def test_absorbing_bound_weighs_the_masked_cross_entropy_by_one_over_t(ce_weight):
    """T (alpha_{t-1} - alpha_t) / (1 - alpha_t) = T / t, MDLM's weight in T steps."""
    with jax.enable_x64(True):
        process = chains.make("absorbing", STEPS, VOCAB)
        p = wrong("absorbing", STEPS)
        x0, xt, t, _ = everything("absorbing", STEPS)
        possible = ((xt == VOCAB) | (xt == x0)).all(1)
        x0, xt, t = x0[possible], xt[possible], t[possible]
        batch = {"tokens": jnp.asarray(x0), "valid": jnp.ones(x0.shape, bool)}
        at = functools.partial(
            d3pm.d3pm_at, network("absorbing", p), process=process, ce_weight=ce_weight
        )
        out = jax.jit(at)(np.log(p), batch, xt=xt, t=t)
    step = np.round(t * STEPS).astype(int)
    at = p[step - 1, xt[:, 0] * (VOCAB + 1) + xt[:, 1]]
    ce = -np.log(np.take_along_axis(at, x0[..., None], -1)[..., 0])
    masked = np.where(xt == VOCAB, ce, 0).sum(1)
    loss = STEPS / step * masked + ce_weight * ce.sum(1)
    np.testing.assert_allclose(out.bound, STEPS / step * masked, rtol=1e-12)
    np.testing.assert_allclose(out.loss, loss, rtol=1e-12)
    # over the tokens that have a loss
    mean = ce.mean(1) if ce_weight else masked / np.maximum((xt == VOCAB).sum(1), 1)
    np.testing.assert_allclose(out.metrics["ce"], mean, rtol=1e-12)


@pytest.mark.parametrize("name", ["absorbing", "nearest"])
def test_hybrid_adds_the_simple_cross_entropy(name):
    p = wrong(name, STEPS)
    loss, bound = expected(name, p, ce_weight=0.7)
    simple, no_bound = expected(name, p, simple=True)
    np.testing.assert_allclose(loss - bound, 0.7 * simple, rtol=1e-12)
    assert no_bound is None
    x0, xt, t, weight = everything(name, STEPS)
    at = p[np.round(t * STEPS).astype(int) - 1, xt[:, 0] * states(name) + xt[:, 1]]
    ce = -np.log(np.take_along_axis(at, x0[..., None], -1)).sum((1, 2))
    np.testing.assert_allclose(simple, (weight * ce.reshape(-1, 9)).sum(0), rtol=1e-12)


@pytest.mark.parametrize("name", chains.NAMES)
def test_draws_have_the_enumerated_mean(name):
    """Means of 8,000 draws within 5 standard errors (wrong once in 10^6) for one x0; padding."""
    count, x = 8_000, 5
    p = wrong(name, STEPS)
    loss, bound = expected(name, p, ce_weight=0.5)
    simple, _ = expected(name, p, simple=True)
    inner = network(name, p)

    def apply(params, tokens, sigma):
        out = inner(params, tokens[:, :2], sigma)
        hidden = jnp.pad(out.hidden, ((0, 0), (0, 1), (0, 0)))
        hidden = jnp.where((tokens[:, 2] == 1).all(), hidden, jnp.nan)  # the padding is intact
        return Readout(hidden, out.kernel, out.bias, out.vocab_size)

    batch = {
        "tokens": jnp.broadcast_to(jnp.asarray([*X0[x], 1]), (count, 3)),
        "valid": jnp.broadcast_to(jnp.arange(3) < 2, (count, 3)),
    }
    key, index = step_key(0, 3), jnp.arange(count)
    noise = Noise(stratified(key, index, count), example_keys(key, index))
    process = chains.make(name, STEPS, VOCAB)
    given = apply, jnp.asarray(np.log(p)), batch, noise, process

    @jax.jit
    def draw():
        return OBJECTIVES["d3pm"].loss(*given, ce_weight=0.5), OBJECTIVES["d3pm_ce"].loss(*given)

    out, ce = draw()
    for drawn, mean in ((out.loss, loss[x]), (out.bound, bound[x]), (ce.loss, simple[x])):
        stderr = float(drawn.std()) / np.sqrt(count)
        assert abs(float(drawn.mean()) - mean) < 5 * stderr


@pytest.mark.parametrize("name", chains.NAMES)
def test_gradient_is_the_slope_of_the_loss(name, float64):
    """Along random directions of log p, against central differences."""
    process = chains.make(name, STEPS, VOCAB)
    rng, p = np.random.default_rng(0), wrong(name, STEPS)
    x0, xt, t, weight = everything(name, STEPS)
    possible = np.flatnonzero(weight.reshape(-1) > 0)
    x0, xt, t = (x[possible] for x in (x0, xt, t))
    batch = {"tokens": jnp.asarray(x0), "valid": jnp.ones(x0.shape, bool)}

    @jax.jit
    def loss(log_p):
        xt_t = jnp.asarray(xt), jnp.asarray(t)
        apply = network(name, p)
        return d3pm.d3pm_at(apply, log_p, batch, *xt_t, process, ce_weight=0.3).loss.mean()

    log_p = jnp.asarray(np.log(p) + 0.1 * rng.normal(size=p.shape))
    gradient = jax.jit(jax.grad(loss))(log_p)
    for _ in range(3):
        direction = rng.normal(size=p.shape)
        slope = (loss(log_p + 1e-5 * direction) - loss(log_p - 1e-5 * direction)) / 2e-5
        np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["uniform", "gaussian", "nearest"])
def test_float32_agrees_with_float64_over_a_thousand_steps(name):
    """T times a KL of order 1/T, and its gradient, to 1e-4 at early, middle and late times."""
    vocab, steps, rows = 16, 1000, 6
    rng = np.random.default_rng(0)
    x0 = rng.integers(0, vocab, (rows, 8))
    logits = 3 * rng.normal(size=(rows, 8, vocab))
    t = np.array([1, 2, 30, 400, 900, 1000]) / steps

    near = rng.normal(size=(vocab, 4))

    def make():
        return {
            "uniform": lambda: chains.make(name, steps, vocab),
            "gaussian": lambda: d3pm_gaussian.gaussian(0.97 ** np.arange(steps + 1), vocab),
            "nearest": lambda: d3pm_nearest.neighbour_process(1 - np.arange(1001) / 1000, near, 4),
        }[name]()

    keys = example_keys(step_key(0, 0), jnp.arange(rows))
    xt = jax.jit(make().corrupt)(keys, x0, jnp.float32(t))

    def results(dtype):
        process = make()
        batch = {"tokens": jnp.asarray(x0), "valid": jnp.ones(x0.shape, bool)}

        def loss(hidden):
            readout = Readout(hidden, jnp.eye(vocab, dtype=dtype), jnp.zeros(vocab, dtype), vocab)
            times = jnp.asarray(t, dtype)
            out = d3pm.d3pm_at(lambda *_: readout, {}, batch, xt, times, process)
            return out.loss.sum(), out.loss

        return jax.jit(jax.grad(loss, has_aux=True))(jnp.asarray(logits, dtype))

    slope, value = results(np.float32)
    with jax.enable_x64(True):
        slope64, value64 = results(np.float64)
    assert np.isfinite(slope).all()
    np.testing.assert_allclose(value, value64, rtol=1e-4, atol=1e-4)
    for row, row64 in zip(np.asarray(slope), np.asarray(slope64), strict=True):
        np.testing.assert_allclose(row, row64, rtol=1e-3, atol=1e-4 * abs(row64).max() + 1e-7)
