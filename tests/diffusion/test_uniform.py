"""The uniform process: its laws, and its reverse against Bayes by enumeration, vocabulary 3.

Chi-squares reject the right law once in 10^6.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.stats import chi2

from ddm_jax.diffusion import uniform
from ddm_jax.diffusion.randomness import example_keys, step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from tests.enumerable import all_sequences, random_joint

VOCAB, LENGTH, COUNT = 3, 3, 60_000
PROCESS = Uniform(SCHEDULES["log_linear"].make(eps=0.0), VOCAB)  # alpha = 1 - t


def matrix(alpha, vocab=VOCAB):
    """q(x_t | x_0): float64[vocab, vocab], rows sum to 1."""
    return alpha * np.eye(vocab) + (1 - alpha) / vocab


@functools.partial(jax.jit, static_argnums=0)
def keys(count=COUNT, seed=0):
    return example_keys(step_key(seed, 0), jnp.arange(count))


corrupt = jax.jit(PROCESS.corrupt)


def assert_law(tokens, law):
    counts, expected = np.bincount(tokens.reshape(-1), minlength=len(law)), tokens.size * law
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert statistic < chi2.isf(1e-6, df=len(law) - 1)


def test_corruption_follows_its_marginal_law():
    """Every x0 and three times, the last one full noise; a time may be of a position's own."""
    t = np.resize([0.1, 0.6, 1.0], COUNT).astype(np.float32)
    x0 = np.broadcast_to(np.arange(VOCAB), (COUNT, VOCAB))
    whole = np.asarray(corrupt(keys(), x0, t))
    per_position = np.asarray(corrupt(keys(), x0, np.tile(t[:, None], (1, VOCAB))))
    np.testing.assert_array_equal(per_position, whole)
    for i, time in enumerate((0.1, 0.6, 1.0)):
        for token in range(VOCAB):
            assert_law(whole[i::3, token], matrix(1 - time)[token])


def test_positions_are_corrupted_independently():
    """The law of pairs of neighbours is the product law."""
    xt = np.asarray(corrupt(keys(), np.zeros((COUNT, 2), int), np.full(COUNT, 0.6, np.float32)))
    law = matrix(0.4)[0]
    assert_law(xt @ np.array([VOCAB, 1]), np.outer(law, law).reshape(-1))


def test_corruptions_compose():
    """0 -> s -> t by alpha_t / alpha_s is 0 -> t: as matrices, as their flow, and as drawn."""
    for alpha_s, alpha_t in ((0.9, 0.2), (0.5, 0.499), (1.0, 1e-6)):
        two = matrix(alpha_s) @ matrix(alpha_t / alpha_s)
        np.testing.assert_allclose(two, matrix(alpha_t), rtol=1e-12)
        q = np.ones((VOCAB, VOCAB)) / VOCAB - np.eye(VOCAB)
        np.testing.assert_allclose(expm(-np.log(alpha_t) * q), two, rtol=1e-9)
    x0 = np.full((COUNT, LENGTH), 2)
    xs = corrupt(keys(), x0, np.full(COUNT, 0.3, np.float32))
    xt = corrupt(keys(seed=1), xs, np.full(COUNT, 1 - 0.4 / 0.7, np.float32))
    assert_law(np.asarray(xt), matrix(0.4)[2])


def test_fixed_positions_keep_their_token():
    x0 = np.broadcast_to(np.arange(LENGTH), (COUNT, LENGTH))
    movable = np.random.default_rng(0).random(x0.shape) < 0.5
    t = np.ones(COUNT, np.float32)
    xt = np.asarray(corrupt(keys(), x0, t, movable))
    np.testing.assert_array_equal(xt[~movable], x0[~movable])
    # and the others are what they would have been
    free = np.asarray(corrupt(keys(), x0, t))
    np.testing.assert_array_equal(xt[movable], free[movable])
    assert (free[~movable] != x0[~movable]).any()


def test_prior_is_uniform():
    prior = jax.jit(PROCESS.prior, static_argnums=1)(keys(), LENGTH)
    assert_law(np.asarray(prior), np.full(VOCAB, 1 / VOCAB))


def test_network_is_told_the_total_noise():
    sigma = jax.jit(PROCESS.condition)(np.float32([0.1, 0.9]))
    np.testing.assert_allclose(sigma, -np.log([0.9, 0.1]), rtol=1e-6)


def law_of_reverse(xt, logits, s, t, process=PROCESS):
    """What `reverse` draws x_s from: float[B, L, V]."""
    s, t = (np.asarray(each, logits.dtype) for each in (s, t))
    return np.asarray(softmax_of_reverse(process, xt, logits, s, t))


@functools.partial(jax.jit, static_argnums=0)
def softmax_of_reverse(process, xt, logits, s, t):
    return jax.nn.softmax(process.reverse_logits(xt, logits, s, t), axis=-1)


@pytest.mark.parametrize(("s", "t"), [(0.2, 0.5), (0.0, 0.5), (0.0, 1e-3), (0.9, 1.0)])
def test_reverse_is_the_posterior_of_bayes(s, t, float64):
    """For a lone position with p(x0), against q(x_t | x_s) q(x_s | x_0) p(x_0) summed over x_0."""
    p0 = np.array([0.2, 0.75, 0.05])
    joint = (p0 @ matrix(1 - s))[:, None] * matrix((1 - t) / (1 - s))  # [x_s, x_t]
    want = (joint / joint.sum(0)).T
    xt = np.arange(VOCAB)[None]
    got = law_of_reverse(xt, np.broadcast_to(np.log(p0) + 7, (1, VOCAB, VOCAB)), s, t)
    np.testing.assert_allclose(got[0], want, rtol=1e-9)


def test_reverse_of_the_last_step_leaves_no_noise(float64):
    """Also where the schedule has alpha(0) < 1: p(x0) q(x_t | x_0), and a certain p decides."""
    process = Uniform(SCHEDULES["geometric"].make(sigma_min=0.5, sigma_max=2.0), VOCAB)
    p0 = np.array([0.0, 0.6, 0.4])
    alpha = np.exp(-1.0)  # sigma_bar(1/2)
    want = p0 * matrix(alpha)[:, 2]
    with np.errstate(divide="ignore"):
        got = law_of_reverse(np.array([[2]]), np.log(p0)[None, None], 0.0, 0.5, process)
    np.testing.assert_allclose(got[0, 0], want / want.sum(), rtol=1e-9)


def test_reverse_with_leave_one_out_conditionals_is_the_law_given_all_of_xt(float64):
    """p(x0_i | the OTHER positions of x_t) goes in, p(x_s,i | all of x_t) comes out."""
    states = all_sequences(VOCAB, LENGTH)
    joint = random_joint(VOCAB, LENGTH).reshape(-1)
    s, t = 0.3, 0.6
    one_hot = np.eye(VOCAB)[states]  # [27, L, V]
    per_token = matrix(1 - t)[states[:, None], states]  # [x0, x_t, L]
    to_s = matrix(1 - s)[states[:, None], states].prod(-1)  # [x0, x_s]
    s_to_t = matrix((1 - t) / (1 - s))[states[:, None], states].prod(-1)  # [x_s, x_t]
    given_xt = (joint @ to_s)[:, None] * s_to_t
    want = np.einsum("st,slv->tlv", given_xt / given_xt.sum(0), one_hot)
    logits = np.zeros((len(states), LENGTH, VOCAB))
    for i in range(LENGTH):
        others = np.delete(per_token, i, axis=2).prod(-1)  # [x0, x_t]
        logits[:, i] = np.log(np.einsum("s,st,sv->tv", joint, others, one_hot[:, i]))
    np.testing.assert_allclose(law_of_reverse(states, logits, s, t), want, rtol=1e-9)


@pytest.mark.parametrize("schedule", ["log_linear", "geometric"])
def test_reverse_is_accurate_in_float32(schedule, float64):
    """The odds of a move over those of staying, in steps of 1/1024 at both ends of time."""
    process = Uniform(SCHEDULES[schedule].make(), VOCAB)
    p0, xt = np.log([[[0.2, 0.75, 0.05]]]), np.array([[1]])
    for t in (2 / 1024, 0.5, 1.0):
        want = law_of_reverse(xt, p0, t - 1 / 1024, t, process)
        got = law_of_reverse(xt, p0.astype(np.float32), t - 1 / 1024, t, process)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got / got[..., 1:2], want / want[..., 1:2], rtol=1e-3)


def test_reverse_draws_from_its_law():
    p0, s, t = np.array([0.2, 0.75, 0.05]), 0.2, 0.5
    xt = np.broadcast_to(np.arange(VOCAB), (COUNT, VOCAB))
    logits = np.broadcast_to(np.log(p0).astype(np.float32), (*xt.shape, VOCAB))
    xs = np.asarray(jax.jit(PROCESS.reverse)(keys(), xt, logits, *np.float32([s, t])))
    joint = (p0 @ matrix(1 - s))[:, None] * matrix((1 - t) / (1 - s))
    for token in range(VOCAB):
        assert_law(xs[:, token], joint[:, token] / joint[:, token].sum())


def test_corruption_equals_oracle(oracle, monkeypatch):
    """SEDD's uniforms decide which tokens are redrawn, its integers what they become."""
    arrays, _ = oracle("sedd", "graph")
    u, drawn = arrays["uniform_sample_transition_u"], arrays["uniform_sample_transition_randint"]
    monkeypatch.setattr(uniform, "uniforms", lambda keys, shape: jnp.asarray(u))
    monkeypatch.setattr(Uniform, "prior", lambda self, keys, length: jnp.asarray(drawn))
    process = Uniform(SCHEDULES["log_linear"].make(), vocab_size=int(drawn.max()) + 1)
    x0 = arrays["uniform_sample_transition_x0"]

    @jax.jit
    def of_sigma(x0, sigma):
        return process.corrupt(keys(len(x0)), x0, process.schedule.time(sigma))

    xt = of_sigma(x0, arrays["uniform_sample_transition_sigma"])
    want = arrays["uniform_sample_transition_xt"]
    assert 0 < (want != x0).mean() < 1
    np.testing.assert_array_equal(xt, want)


def test_reverse_equals_the_transitions_of_the_oracle(oracle, float64):
    """With p uniform, x_s is uniform too, and its law given x_t is that of x_t given x_s."""
    arrays, _ = oracle("sedd", "graph")
    xt, transition = arrays["uniform_i"], arrays["uniform_transp_transition__f64"]
    vocab, s = transition.shape[-1], 0.25
    np.testing.assert_allclose(transition, arrays["uniform_transition__f64"], rtol=1e-12)
    for row, sigma in enumerate(arrays["uniform_sigma"][:, 0].astype(np.float64)):
        # a schedule whose noise from s to t is the oracle's sigma
        schedule = SCHEDULES["mdlm_linear"].make(sigma_max=2 * sigma)
        process = Uniform(schedule, vocab)
        logits = np.zeros((1, xt.shape[1], vocab))
        got = law_of_reverse(xt[row : row + 1], logits, s, s + 0.5, process)
        np.testing.assert_allclose(got[0], transition[row], rtol=1e-6)
