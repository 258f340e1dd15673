"""Masked diffusion of an enumerable distribution: every x0 under every mask; bounds in numpy."""

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.models.readout import Readout
from tests.enumerable import all_masks, all_sequences, random_joint

VOCAB, LENGTH = 3, 4
JOINT = random_joint(VOCAB, LENGTH)
NLL = -np.log(JOINT.reshape(-1))
X0, MASKS = all_sequences(VOCAB, LENGTH), all_masks(LENGTH)
TIMES = 40
XT = np.where(MASKS, VOCAB, X0[:, None])  # [81, 16, 4]


def gauss(low, high, count):
    """Gauss-Legendre nodes and weights of the integral over [low, high]."""
    x, w = np.polynomial.legendre.leggauss(count)
    return low + (high - low) * (x + 1) / 2, w * (high - low) / 2


def every_corruption(times):
    """(batch, xt, t) of every x0 under every mask at each time, as rows of one batch."""
    count = len(times)
    tokens = np.tile(np.repeat(X0, len(MASKS), axis=0), (count, 1))
    xt = np.tile(XT.reshape(-1, LENGTH), (count, 1))
    batch = {"tokens": jnp.asarray(tokens), "valid": jnp.ones(tokens.shape, bool)}
    return batch, jnp.asarray(xt), jnp.asarray(np.repeat(times, len(tokens) // count))


def losses_at(loss_at, apply, times, process, **options):
    """Loss of every x0 under every mask at each of up to TIMES times: float64[times, 81, 16]."""
    # always the same shapes, which jax compiles once
    batch, xt, t = every_corruption(np.pad(times, (0, TIMES - len(times)), mode="edge"))
    out = loss_at(apply, {}, batch, xt, t, process, **options)
    np.testing.assert_array_equal(out.bound, out.loss)
    return np.asarray(out.loss).reshape(TIMES, len(X0), len(MASKS))[: len(times)]


def mask_law(m):
    """P(mask): each token is masked with probability m[..., 81, 4] -> float64[..., 81, 16]."""
    return np.where(MASKS, m[..., None, :], 1 - m[..., None, :]).prod(-1)


def even_mask_law(m):
    """The same with one probability for all tokens: float64[...] -> float64[..., 1, 16]."""
    return mask_law(np.broadcast_to(np.asarray(m)[..., None, None], (*np.shape(m), 1, LENGTH)))


def answers(apply):
    """What a table network says of every corruption: log p, float64[81, 16, 4, V]."""
    return np.asarray(apply({}, jnp.asarray(XT.reshape(-1, LENGTH))).logits()).reshape(
        *XT.shape, VOCAB
    )


def bound_in_steps(alpha, log_p):
    """sum_i E KL(q(x_s | x_t, x0) || p(x_s | x_t)) for every x0, from the definitions.

    alpha: float64[T + 1, V], alpha_v at the times. log_p: `answers`, or those at each of the T
    times of x_t, float64[T, 81, 16, 4, V].
    """
    s, t = alpha[:-1], alpha[1:]
    stay = (1 - s) / (1 - t)  # q(x_s = m | x_t = m, x0 = v)
    p_stay = (stay[:, None, None, None] * np.exp(log_p)).sum(-1)
    q_stay = stay[:, X0][:, :, None]
    x0 = np.broadcast_to(X0[:, None, :, None], (*log_p.shape[:-1], 1))
    reveal = -(1 - q_stay) * np.take_along_axis(log_p, x0, axis=-1)[..., 0]
    ratio = np.where(q_stay > 0, q_stay, 1) / np.where(q_stay > 0, p_stay, 1)
    kl = np.where(MASKS, reveal + q_stay * np.log(ratio), 0).sum(-1)
    return (mask_law(1 - t[:, X0]) * kl).sum((0, 2))


def smooth_network():
    """(apply, params): float64, every output a smooth function of all tokens and the time."""
    shapes = {"token": (VOCAB + 1, LENGTH, 6), "sigma": (6,), "mix": (6, LENGTH, 6), "head": (6, 3)}
    keys = jax.random.split(jax.random.key(0), len(shapes))
    params = {
        name: jax.random.normal(key, shape, jnp.float64)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

    def apply(params, tokens, sigma):
        seen = params["token"][tokens, jnp.arange(LENGTH)].sum(1)
        hidden = jnp.tanh(seen + jnp.exp(-sigma)[:, None] * params["sigma"])
        hidden = jnp.tanh(jnp.einsum("bd,dle->ble", hidden, params["mix"]))
        return Readout(hidden, params["head"], jnp.zeros(VOCAB), VOCAB)

    return apply, params


def slope_and_difference(loss, params):
    """(the gradient of loss(params) along a direction, its central difference)."""
    direction = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)

    def along(h):
        return loss(jax.tree.map(lambda p, d: p + h * d, params, direction))

    slope, along = jax.jit(jax.grad(along))(0.0), jax.jit(along)
    return slope, (along(1e-5) - along(-1e-5)) / 2e-5
