"""UDLM: the continuous-time bound of uniform noise (Schiff et al. 2024, arXiv:2412.10193, eq. 18).

Of the two laws q_y = q(x_t = y | x_0) and q^theta_y = sum_x0 q(x_t = y | x_0) p(x_0), with z = x_t,

    -d/dt log alpha / (V q_z) [KL(q || q^theta) + IS(q_z, q^theta_z)], IS(a, b) = a/b - log(a/b) - 1

is UDLM's integrand (Duo, Sahoo et al. 2025, writes it without the cancelling terms) in the form of
GIDD (von Rütte et al. 2025, arXiv:2503.04482). `divergence` has what the two share.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.models.network import Readout, pick
from ddm_jax.objectives.signature import Batch, LossOutput, Noise, share, uniform_time


def udlm(apply: Callable, params: dict, batch: Batch, noise: Noise, process: Uniform) -> LossOutput:
    """UDLM's loss at t ~ U(1e-3, 1). Optimises a bound on -log p(x0), all positions carry loss."""
    t = uniform_time(noise.u)
    xt = process.corrupt(noise.keys, batch["tokens"], t, batch["valid"])
    return udlm_at(apply, params, batch, xt, t, process)


def udlm_at(
    apply: Callable, params: dict, batch: Batch, xt: Array, t: Array, process: Uniform
) -> LossOutput:
    """The integrand at xt int32[b, L] and t float[b]; `bound` has KL(q(x_1 | x_0) || prior) too.

    Left out is what happens before t = 1e-3: -log p(x_0 | x_t) at that time.
    """
    x0, valid, size = batch["tokens"], batch["valid"], process.vocab_size
    clean = process.schedule.alpha(t)[:, None]
    each = process.schedule.one_minus_alpha(t)[:, None] / size
    readout = apply(params, xt, process.condition(t))
    everywhere, at_x0, _ = divergence(readout, x0, xt, clean / each)
    q_xt = each + clean * (xt == x0)
    per_position = (each * everywhere + clean * at_x0) / (size * q_xt)
    loss = process.schedule.rate(t) * jnp.where(valid, per_position, 0).sum(axis=1)
    return LossOutput(loss, loss + valid.sum(axis=1) * process.prior_kl(), noised(batch, xt))


def divergence(readout: Readout, x0: Array, xt: Array, ratio: Array) -> tuple[Array, Array, Array]:
    """The parts of KL(q || q^theta) + IS(q_z, q^theta_z), z = x_t, none of which is negative.

    Both laws give a token k (1 + ratio p_y), for q with p the one-hot x_0, and the mask (or
    whatever else xt >= V stands for) one and the same share. With
    psi(d) = e^d - 1 - d and d_y = log(q^theta_y / q_y) - log(q^theta_z / q_z),

        KL + IS = sum_y q_y psi(d_y).

    Args:
      readout: of p. x0, xt: int32[b, L]. ratio: float[b, 1], of the clean part to k.

    Returns:
      (sum of psi(d_y) over the tokens, psi(d_y) at y = x_0, psi(d_y) at the mask), float[b, L].
    """

    def read(logits: Array, x0: Array, xt: Array, ratio: Array) -> tuple[Array, Array, Array]:
        size = logits.shape[-1]
        ratio = ratio[:, None].astype(logits.dtype)
        exact = jnp.where(x0[:, None] == jnp.arange(size), jnp.log1p(ratio), 0)
        d = jnp.log1p(ratio * jax.nn.softmax(logits, axis=-1)) - exact
        at_mask = jnp.where(xt < size, -pick(d, jnp.minimum(xt, size - 1)), 0)
        psi = _excess(d + at_mask[:, None])
        return psi.sum(axis=-1), pick(psi, x0), _excess(at_mask)

    return readout.read(read, x0, xt, jnp.broadcast_to(ratio, x0.shape))


def noised(batch: Batch, xt: Array) -> dict[str, Array]:
    """The metric `noised`: the share of the valid positions where x_t is not x_0, float[b]."""
    return {"noised": share(xt != batch["tokens"], batch)}


def _excess(d: Array) -> Array:
    """psi(d) = e^d - 1 - d."""
    return jnp.expm1(d) - d
