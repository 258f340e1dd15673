"""GenMD4 against bounds enumerated in numpy: vocabulary 3, length 4, every mask, every x0."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.vector_absorbing import VectorAbsorbing
from ddm_jax.models import readout as readout_module
from ddm_jax.models.readout import Readout
from ddm_jax.objectives import OBJECTIVES
from ddm_jax.objectives.genmd4 import diffusion_at, genmd4_at, init
from ddm_jax.objectives.mdlm import mdlm_at
from tests.batch import batch_of, noise_of
from tests.masking import (
    JOINT,
    LENGTH,
    MASKS,
    TIMES,
    VOCAB,
    X0,
    XT,
    answers,
    bound_in_steps,
    every_corruption,
    gauss,
    losses_at,
    mask_law,
    slope_and_difference,
    smooth_network,
)
from tests.objectives.cases import PAD, told
from tests.objectives.powers import (
    EPS,
    FIRST,
    W,
    bound_at,
    constants,
    learnt,
    masked_chance,
    over_times,
)
from tests.visible import wrong_table

PROCESS = Absorbing(SCHEDULES["linear"].make(), mask_id=VOCAB)
WRONG = wrong_table(VOCAB, LENGTH)
LOG_P = answers(WRONG)


def said(log_p):
    """A network that has said log_p[b, L, V] already."""
    return lambda *_: Readout(log_p, jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)


@functools.partial(jax.jit, static_argnums=3)
def diffusion_of_all(log_p, w, levels, count):
    tokens, xt = every_corruption(count)
    vector = VectorAbsorbing(PROCESS, w)
    return *diffusion_at(said(log_p), {}, batch_of(tokens), xt, levels, vector), xt


def diffusion(log_p, w, times):
    """The diffusion term of every x0 under every mask: float64[times, 81, 16]."""
    levels = np.repeat(np.pad(times, (0, TIMES - len(times)), mode="edge"), XT.size // LENGTH)
    rows = np.broadcast_to(log_p, (TIMES, *XT.shape, VOCAB)).reshape(-1, LENGTH, VOCAB)
    loss, masked, xt = diffusion_of_all(rows, w, levels, TIMES)
    np.testing.assert_array_equal(masked, xt == VOCAB)
    return np.asarray(loss).reshape(TIMES, len(X0), len(MASKS))[: len(times)]


def over_time(log_p, w):
    """E over t ~ U(1e-3, 1) and masks of the diffusion term, for every x0; even in log t."""
    log_t, weight = gauss(np.log(FIRST), 0, TIMES)
    t = np.exp(log_t)
    expected = (diffusion(log_p, w, t) * mask_law(masked_chance(w, t))).sum(-1)
    return (weight * t) @ expected / (1 - FIRST)


def in_steps(steps, w, log_p):
    """The bound of T steps from t = 1 to 1e-3, even in log t."""
    t = FIRST ** (1 - np.arange(steps + 1) / steps)
    return bound_in_steps(1 - (1 - EPS) * t[:, None] ** w, log_p)


def test_bound_is_the_limit_of_the_definitions_for_any_denoiser(float64):
    """sum KL(q(x_s | x_t, x0) || p(x_s | x_t)) in 75, 150 and 300 steps, extrapolated.

    And what the table of objectives holds draws against.
    """
    few, more, most = (in_steps(n, W, LOG_P) for n in (75, 150, 300))
    ours = over_time(LOG_P, W)
    assert abs(most / ours - 1).max() > 1e-2
    np.testing.assert_allclose(ours, (8 * most - 6 * more + few) / 3, rtol=1e-4)
    in_numpy = over_times(lambda t: bound_at(LOG_P, W, t))
    np.testing.assert_allclose(in_numpy, ours + constants(W), rtol=1e-9)


def test_exact_denoiser_attains_what_the_data_have_left_at_the_first_time(float64):
    """KL(q(x_t1 | x0) || q(x_t1)) - KL(q(x_1 | x0) || q(x_1)), for every x0.

    That is what the exact reversal of the process costs. The exact denoiser knows the time: which
    tokens are masked says something of them.
    """

    def q(t):
        """q(x_t | x0) of the 16 masks of each x0 and q(x_t), both float64[81, 16]."""
        given = mask_law(masked_chance(W, t))
        fits = ((XT[:, :, None] == VOCAB) | (XT[:, :, None] == X0)).all(-1)  # [81, 16, x0']
        of_others = mask_law(masked_chance(W, t))  # the same mask has another chance for x0'
        weight = fits * JOINT.reshape(-1) * of_others.T[None]
        return given, weight

    def kl(t):
        given, weight = q(t)
        return (given * (np.log(given) - np.log(weight.sum(-1)))).sum(-1)

    def exact(t):
        """p(x0_i = v | x_t, t) for every x0 and mask: float64[81, 16, 4, V]."""
        _, weight = q(t)
        posterior = np.einsum("xms,slv->xmlv", weight, np.eye(VOCAB)[X0])
        return posterior / weight.sum(-1)[..., None, None]

    times = np.exp(gauss(np.log(FIRST), 0, TIMES)[0])
    log_p = np.log(np.maximum([exact(t) for t in times], 1e-300))
    np.testing.assert_allclose(over_time(log_p, W), kl(FIRST) - kl(1.0), rtol=1e-6)


def test_equal_powers_give_the_polynomial_schedule(float64):
    """For each mask and time: MDLM's loss with alpha = 1 - t^w, whose weight is w / t."""
    t = np.array([1e-3, 0.3, 1.0])
    for k in (1.0, 2.5):
        process = Absorbing(SCHEDULES["polynomial"].make(k=k, eps=0.0), mask_id=VOCAB)
        want = losses_at(mdlm_at, LOG_P, t, process) * (1 - FIRST)
        ours = diffusion(LOG_P, np.full(VOCAB, k), t)
        np.testing.assert_allclose(ours, want, rtol=1e-7, atol=1e-9)


def test_gradient_estimate_has_the_exact_mean(float64):
    """Over all pairs of masks; against finite differences of the enumerated bound, at two times."""
    x0 = 17
    pairs = np.array([(a, b) for a in range(len(MASKS)) for b in range(len(MASKS))])

    @jax.jit
    def estimate(raw, t, weight):
        """(the loss and the bound, the gradients of both)."""

        def mean(raw):
            params = {"objective": {"raw_power": raw}}
            log_p, (x1, x2) = jnp.asarray(LOG_P[x0]), XT[x0][pairs.T]
            states = jnp.asarray(XT[x0])

            def apply(params, tokens, sigma):
                row = (tokens[:, None] == states).all(-1).argmax(1)
                return said(log_p[row])()

            batch = batch_of(np.tile(X0[x0], (len(pairs), 1)))
            level = jnp.full(len(pairs), t)
            out = genmd4_at(apply, params, batch, jnp.asarray(x1), jnp.asarray(x2), level, PROCESS)
            return jnp.stack([weight @ out.loss, weight @ out.bound])

        value, pull = jax.vjp(mean, raw)
        return value, *(pull(one)[0] for one in jnp.eye(2))

    def exact(raw, t):
        return bound_at(LOG_P, np.log1p(np.exp(raw)), t)[x0]

    raw, step = learnt(W)["objective"]["raw_power"], 1e-6
    for t in (0.2, 0.9):
        law = mask_law(masked_chance(W, t))[x0]
        both, of_loss, of_bound = estimate(raw, t, law[pairs[:, 0]] * law[pairs[:, 1]])
        np.testing.assert_allclose(both, exact(raw, t), rtol=1e-9)
        slopes = np.array([exact(raw + d, t) - exact(raw - d, t) for d in step * np.eye(VOCAB)])
        slopes /= 2 * step
        np.testing.assert_allclose(of_loss, slopes, rtol=1e-6)
        # the law of the masks matters: without its gradient the result is another
        assert abs(np.asarray(of_bound) / slopes - 1).max() > 0.05


def test_draws_have_the_enumerated_gradient():
    """40,000 draws of one sequence with padding: 5 standard errors (wrong once in 10^6).

    Along one direction of log-powers, against the enumerated bound's.
    """
    count, x0 = 40_000, 17
    raw, way = learnt(W)["objective"]["raw_power"], np.array([1, -1, 1])

    def exact(raw):
        return over_times(lambda t: bound_at(LOG_P, np.log1p(np.exp(raw)), t))[x0]

    slope = (exact(raw + 1e-4 * way) - exact(raw - 1e-4 * way)) / 2e-4

    @jax.jit
    def slopes(batch, noise):
        def losses(raw):
            params = {"says": jnp.float32(WRONG)[None], "objective": {"raw_power": raw}}
            return OBJECTIVES["genmd4"].loss(told, params, batch, noise, PROCESS).loss

        return jax.jvp(losses, (jnp.float32(raw),), (jnp.float32(way),))[1]

    tokens = np.tile(np.append(X0[x0], PAD), (count, 1))
    batch = batch_of(tokens, np.arange(LENGTH + 1) < LENGTH)
    found = np.asarray(slopes(batch, noise_of(count)))
    stderr = found.std() / np.sqrt(count)
    assert abs(found.mean() - slope) < 5 * stderr < 0.7 * abs(slope)


def setup_smooth():
    apply, params = smooth_network()
    xs = [jnp.asarray(XT[:4, i]) for i in (9, 5)]
    return apply, params, batch_of(X0[:4]), xs, jnp.array([0.25, 0.5, 0.75, 1.0])


def test_gradient_of_the_network_is_the_slope_of_the_bound(float64):
    apply, params, batch, (x1, x2), t = setup_smooth()

    def loss(params):
        given = learnt(W)
        return genmd4_at(
            lambda _, *a: apply(params, *a), given, batch, x1, x2, t, PROCESS
        ).loss.mean()

    slope, difference = slope_and_difference(loss, params)
    assert abs(slope) > 0.1
    np.testing.assert_allclose(difference, slope, rtol=1e-7)


def test_reading_in_chunks_changes_nothing(float64, monkeypatch):
    """Also where the logits of all positions would not fit: same loss, same gradients."""
    apply, params, batch, (x1, x2), t = setup_smooth()

    def loss(both):
        def told(_, *a):
            return apply(both["network"], *a)

        return genmd4_at(told, both, batch, x1, x2, t, PROCESS).loss.sum()

    both = {"network": params} | learnt(W)
    whole = jax.jit(jax.value_and_grad(loss))(both)
    monkeypatch.setattr(readout_module, "LOGIT_BYTES", 5 * VOCAB * 4)
    chunked = jax.jit(jax.value_and_grad(lambda both: loss(both)))(both)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), chunked, whole)


def test_gradient_is_finite_at_both_ends_of_time():
    """Everything clean and everything masked at t = 1e-3 and t = 1, in float32."""
    x1, x2 = X0[:4].copy(), np.full((4, LENGTH), VOCAB)
    x1[2] = VOCAB
    t = np.float32([1e-3, 1.0, 1.0, 1e-3])

    @jax.jit
    def value_and_gradient(x1, x2):
        def loss(raw):
            params = {"objective": {"raw_power": raw}}
            apply = said(jnp.float32(LOG_P[:4, 15]))
            return genmd4_at(apply, params, batch_of(X0[:4]), x1, x2, t, PROCESS).loss.sum()

        return jax.value_and_grad(loss)(init(jax.random.key(0), PROCESS, 3.0)["raw_power"])

    value, grad = value_and_gradient(x1, x2)
    assert np.isfinite(value)
    assert np.isfinite(grad).all()
