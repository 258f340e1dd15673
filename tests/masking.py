"""Masked diffusion of an enumerable distribution: every x0 under every mask; bounds in numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.models.readout import Readout
from tests.batch import batch_of
from tests.enumerable import all_masks, all_sequences, random_joint

VOCAB, LENGTH = 3, 4
JOINT = random_joint(VOCAB, LENGTH)
NLL = -np.log(JOINT.reshape(-1))
X0, MASKS = all_sequences(VOCAB, LENGTH), all_masks(LENGTH)
TIMES = 40
XT = np.where(MASKS, VOCAB, X0[:, None])  # [81, 16, 4]

ONE_MINUS_ALPHA = {
    "log_linear": lambda t: (1 - 1e-3) * t,
    "linear": lambda t: 1e-4 + (1 - 2e-4) * t,
    "cosine": lambda t: 1e-4 + (1 - 2e-4) * np.cos(np.pi / 2 * (1 - t)),
    "polynomial": lambda t: 1e-4 + (1 - 2e-4) * t**2,
    "mdlm_cosine": lambda t: (1 - 1e-3) * (1 - np.cos(np.pi / 2 * t)),
    "mdlm_cosine_squared": lambda t: (1 - 1e-3) * np.sin(np.pi / 2 * t) ** 2,
    "mdlm_linear": lambda t: -np.expm1(-10 * t),
    "geometric": lambda t: -np.expm1(-(1e-4 ** (1 - t)) * 20.0**t),
}


def gauss(low, high, count):
    """Gauss-Legendre nodes and weights of the integral over [low, high]."""
    x, w = np.polynomial.legendre.leggauss(count)
    return low + (high - low) * (x + 1) / 2, w * (high - low) / 2


def every_corruption(count):
    """(x0, x_t) of every x0 under every mask at `count` times, as rows int[.., 4] of one batch."""
    tokens = np.tile(np.repeat(X0, len(MASKS), axis=0), (count, 1))
    return tokens, np.tile(XT.reshape(-1, LENGTH), (count, 1))


def losses_at(loss_at, log_p, times, process, **options):
    """Loss of every x0 under every mask at each of up to TIMES times: float64[times, 81, 16].

    log_p: `answers`, or those at each of the TIMES times.
    """
    # always the same shapes, which jax compiles once
    levels = np.repeat(np.pad(times, (0, TIMES - len(times)), mode="edge"), len(X0) * len(MASKS))
    rows = np.broadcast_to(log_p, (TIMES, *XT.shape, VOCAB)).reshape(-1, LENGTH, VOCAB)
    out = _program(loss_at, process, tuple(options.items()))(rows, levels)
    np.testing.assert_array_equal(out.bound, out.loss)
    return np.asarray(out.loss).reshape(TIMES, len(X0), len(MASKS))[: len(times)]


class Plain(Readout):
    """Reads every position, which compiles in a third of the time of the fused head."""

    def losses(self, reduce, weight, *given):
        each = jax.vmap(reduce)(self.hidden, *given)
        return jnp.where(weight == 0, 0, weight * each)


@functools.cache
def _program(loss_at, process, options):
    @jax.jit
    def run(log_p, levels):
        readout = Plain(log_p, jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)
        tokens, xt = every_corruption(TIMES)
        return loss_at(
            lambda *_: readout, {}, batch_of(tokens), xt, levels, process, **dict(options)
        )

    return run


def mask_law(m):
    """P(mask): each token is masked with probability m[..., 81, 4] -> float64[..., 81, 16]."""
    return np.where(MASKS, m[..., None, :], 1 - m[..., None, :]).prod(-1)


def even_mask_law(m):
    """The same with one probability for all tokens: float64[...] -> float64[..., 1, 16]."""
    return mask_law(np.broadcast_to(np.asarray(m)[..., None, None], (*np.shape(m), 1, LENGTH)))


def answers(table):
    """What a table says of every corruption: float64[(V + 1)^4, 4, V] -> float64[81, 16, 4, V]."""
    return table[XT @ (VOCAB + 1) ** np.arange(LENGTH)[::-1]]


def cross_entropies(log_p):
    """Of each token that is masked, of `answers`: float64[81, 16, 4]."""
    x0 = np.broadcast_to(X0[:, None, :, None], (*log_p.shape[:-1], 1))
    return np.where(MASKS, -np.take_along_axis(log_p, x0, axis=-1)[..., 0], 0)


def bound_in_steps(alpha, log_p):
    """sum_i E KL(q(x_s | x_t, x0) || p(x_s | x_t)) for every x0, from the definitions.

    alpha: float64[T + 1, V], alpha_v at the times. log_p: `answers`, or those at each of the T
    times of x_t, float64[T, 81, 16, 4, V].
    """
    s, t = alpha[:-1], alpha[1:]
    stay = (1 - s) / (1 - t)  # q(x_s = m | x_t = m, x0 = v)
    p_stay = (stay[:, None, None, None] * np.exp(log_p)).sum(-1)
    q_stay = stay[:, X0][:, :, None]
    reveal = (1 - q_stay) * cross_entropies(log_p)
    ratio = np.where(q_stay > 0, q_stay, 1) / np.where(q_stay > 0, p_stay, 1)
    kl = np.where(MASKS, reveal + q_stay * np.log(ratio), 0).sum(-1)
    return (mask_law(1 - t[:, X0]) * kl).sum((0, 2))


def smooth_network():
    """(apply, params): float64, every output a smooth function of all tokens and the time."""
    shapes = {"token": (VOCAB + 1, LENGTH, 6), "sigma": (6,), "mix": (6, LENGTH, 6), "head": (6, 3)}
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=shape) for name, shape in shapes.items()}

    def apply(params, tokens, sigma):
        seen = params["token"][tokens, jnp.arange(LENGTH)].sum(1)
        hidden = jnp.tanh(seen + jnp.exp(-sigma)[:, None] * params["sigma"])
        hidden = jnp.tanh(jnp.einsum("bd,dle->ble", hidden, params["mix"]))
        return Readout(hidden, params["head"], jnp.zeros(VOCAB), VOCAB)

    return apply, params


def slope_and_difference(loss, params):
    """(the gradient of loss(params) along a direction, its central difference)."""
    direction = jax.tree.map(lambda x: np.cos(np.arange(x.size)).reshape(x.shape), params)

    def along(h):
        return loss(jax.tree.map(lambda p, d: p + h * d, params, direction))

    both = jax.jit(lambda h: (along(h), jax.grad(along)(h)))
    (after, _), (before, _), (_, slope) = (both(h) for h in (1e-5, -1e-5, 0.0))
    return slope, (after - before) / 2e-5
