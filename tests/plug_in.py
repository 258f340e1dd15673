"""Processes that redraw tokens, as matrices; exact denoisers and expectations for their losses."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.models.readout import Readout
from tests.enumerable import all_sequences


def uniform_matrix(tau, vocab):
    """q(x_t = z | x_0 = v) with alpha = 1 - tau: float64[vocab, vocab]."""
    return (1 - tau) * np.eye(vocab) + tau / vocab


def hybrid_matrix(tau, vocab, p_uniform):
    """The same for GIDD's hybrid noise, the mask last: float64[vocab + 1, vocab + 1]."""
    c = 2 * p_uniform / (1 - p_uniform) * np.sqrt(tau * (1 - tau))
    noise = np.append(np.full(vocab, c / vocab), tau)
    return ((1 - tau) * np.eye(vocab + 1) + noise) / (1 + c)


def leave_one_out(joint, matrix):
    """p(x0_i | x_t at the other positions) for every state: float64[Z^L, L, V], matrix [.., Z]."""
    vocab, length = joint.shape[0], joint.ndim
    states, x0 = all_sequences(matrix.shape[1], length), all_sequences(vocab, length)
    likelihood = matrix[x0[None], states[:, None]]  # [Z^L, V^L, L]
    out = np.zeros((len(states), length, vocab))
    for i in range(length):
        others = np.delete(likelihood, i, axis=2).prod(2) * joint.reshape(-1)
        for v in range(vocab):
            out[:, i, v] = others[:, x0[:, i] == v].sum(1)
    return out / out.sum(-1, keepdims=True)


def time_nodes(step=0.08):
    """Double-exponential quadrature over t in (0, 1): (nodes, weights), for integrable ends."""
    x = np.arange(-3.6, 2.9, step)
    t = 1 / (1 + np.exp(-np.pi * np.sinh(x)))
    return t, step * np.pi * np.cosh(x) * t * (1 - t)


def said(log_p):
    """An `apply` whose network has said log_p[rows, L, V] already."""
    vocab = log_p.shape[-1]
    eye = jnp.eye(vocab, dtype=log_p.dtype)
    return lambda params, tokens, sigma: Readout(log_p, eye, jnp.zeros(vocab), vocab)


@functools.partial(jax.jit, static_argnums=(0, 1))
def loss_of(loss_at, process, log_p, x0, xt, t):
    """LossOutput of a network that says log_p[rows, L, V], without padding; int[rows, L] twice."""
    batch = {"tokens": x0, "valid": jnp.ones(x0.shape, bool)}
    return loss_at(said(log_p), {}, batch, xt, t, process)


def expected(loss_at, process, matrix_at, denoiser_at, vocab, length, field="bound", start=0.0):
    """Integral over t in (start, 1) of E over x_t, for every x0: float64[vocab^length].

    matrix_at(tau) -> q. denoiser_at(matrix) -> p[Z^L, L, V], one for every state.
    """
    with jax.enable_x64(True):
        t, weights = time_nodes()
        t, weights = start + (1 - start) * t, (1 - start) * weights
        matrices = [matrix_at(tau) for tau in t]
        x0 = all_sequences(vocab, length)
        states = all_sequences(matrices[0].shape[1], length)
        p = np.stack([denoiser_at(m) for m in matrices])  # [T, S, L, V]
        shape = (len(t), len(x0), len(states))
        rows = np.broadcast_to(p[:, None], (*shape, length, vocab)).reshape(-1, length, vocab)
        tokens = np.broadcast_to(x0[None, :, None], (*shape, length)).reshape(-1, length)
        xt = np.broadcast_to(states[None, None], (*shape, length)).reshape(-1, length)
        times = jnp.asarray(np.repeat(t, len(x0) * len(states)))
        log_p = np.log(np.maximum(rows, 1e-300))
        out = loss_of(loss_at, process, log_p, tokens, xt, times)
        loss = np.asarray(getattr(out, field)).reshape(shape)
    chance = np.stack([m[x0[:, None], states[None]].prod(-1) for m in matrices])
    return np.einsum("t,tns,tns->n", weights, chance, loss)


def wrong_table(states, length, vocab, seed=1):
    """Random normalised answers, the same at all times: float64[states^length, length, vocab]."""
    p = np.random.default_rng(seed).gamma(0.7, size=(states**length, length, vocab)) + 0.02
    return p / p.sum(-1, keepdims=True)


def step_kl(matrix_at, s, t, x0, xt, p):
    """KL(q(x_s | x_t, x_0) || q(x_s | x_t, x_0 = p)) of one position, from matrices alone."""
    m_s, m_t = matrix_at(s), matrix_at(t)
    size = len(m_s)
    forward = np.linalg.solve(m_s, m_t)[:, xt] if s > 0 else m_t[:, xt]
    m_s = m_s if s > 0 else np.eye(size)
    exact = forward * m_s[x0]
    plugged = forward * (np.pad(p, (0, size - len(p))) @ m_s)
    exact, plugged = exact / exact.sum(), plugged / plugged.sum()
    seen = exact > 0
    return (exact[seen] * np.log(exact[seen] / plugged[seen])).sum()


def single_tokens(vocab, states):
    """Every (x0, x_t) of one position: int32[vocab * states, 1] each."""
    x0, xt = np.array(list(itertools.product(range(vocab), range(states))), np.int32).T
    return x0[:, None], xt[:, None]


def assert_gradient(loss_at, process, xt, t):
    """The slope of loss_at along a random direction of a small network, by central differences."""
    rng = np.random.default_rng(0)
    vocab = process.vocab_size
    shapes = {"embed": (vocab + 1, 8), "mix": (8, 8), "time": (8,), "head": (8, vocab)}
    params = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}
    direction = {name: jnp.asarray(rng.normal(size=shape)) for name, shape in shapes.items()}

    def apply(params, tokens, sigma):
        each = params["embed"][tokens] + sigma[:, None, None] * params["time"]
        hidden = jnp.tanh(each + each.mean(1, keepdims=True) @ params["mix"])
        return Readout(hidden, params["head"], jnp.zeros(vocab), vocab)

    batch = {"tokens": jnp.array([[0, 2, 1]]), "valid": jnp.array([[True, True, False]])}

    @jax.jit
    def along(step):
        moved = {name: params[name] + step * direction[name] for name in params}
        return loss_at(apply, moved, batch, jnp.array([xt]), jnp.array([t]), process).loss[0]

    h, slope = 1e-5, jax.grad(along)(0.0)
    assert abs(slope) > 0.01
    np.testing.assert_allclose((along(h) - along(-h)) / (2 * h), slope, rtol=1e-6)
