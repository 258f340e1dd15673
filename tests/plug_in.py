"""Processes that redraw tokens, as matrices; exact denoisers and expectations for their losses."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.models.readout import Readout
from tests.batch import batch_of
from tests.enumerable import all_sequences
from tests.objectives.enumeration import said


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
    params, direction = (
        {name: rng.normal(size=shape) for name, shape in shapes.items()} for _ in range(2)
    )
    given = params, direction, np.array([xt]), np.array([t])
    steps = (1e-5, -1e-5, 0.0)
    (after, _), (before, _), (_, slope) = (_along(loss_at, process, h, *given) for h in steps)
    assert abs(slope) > 0.01
    np.testing.assert_allclose((after - before) / 2e-5, slope, rtol=1e-6)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _along(loss_at, process, step, params, direction, xt, t):
    """(the loss of a sequence with padding `step` along a direction, its slope)."""
    batch = batch_of(np.array([[0, 2, 1]]), np.array([[True, True, False]]))

    def apply(params, tokens, sigma):
        each = params["embed"][tokens] + sigma[:, None, None] * params["time"]
        hidden = jnp.tanh(each + each.mean(1, keepdims=True) @ params["mix"])
        return Readout(hidden, params["head"], jnp.zeros(process.vocab_size), process.vocab_size)

    def loss(step):
        moved = {name: params[name] + step * direction[name] for name in params}
        return loss_at(apply, moved, batch, xt, t, process).loss[0]

    return loss(step), jax.grad(loss)(step)


@functools.partial(jax.jit, static_argnums=(0, 1))
def gradient_and_loss(loss_at, process, logits, x0, xt, t):
    """(d sum(loss) / d logits, loss) of a network that says the logits."""

    def total(logits):
        loss = loss_at(said(logits), {}, batch_of(x0), xt, t, process).loss
        return loss.sum(), loss

    return jax.grad(total, has_aux=True)(logits)


def assert_float32_is_accurate(loss_at, process, logits, x0, xt, t):
    """Of losses, and of gradients relative to those of the sequence; all in float32."""
    single = gradient_and_loss(loss_at, process, logits, x0, xt, t)
    with jax.enable_x64(True):
        double = gradient_and_loss(loss_at, process, np.float64(logits), x0, xt, np.float64(t))
    (grad, loss), (grad64, loss64) = jax.device_get((single, double))
    np.testing.assert_allclose(loss, loss64, rtol=1e-4, atol=1e-5)
    assert (abs(grad - grad64).sum((1, 2)) < 1e-3 * abs(grad64).sum((1, 2)) + 1e-5).all()
