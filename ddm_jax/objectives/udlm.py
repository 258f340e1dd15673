"""UDLM: the continuous-time bound of uniform noise (Schiff et al. 2024, arXiv:2412.10193, eq. 18).

Of the two laws q_y = q(x_t = y | x_0) and q^theta_y = sum_x0 q(x_t = y | x_0) p(x_0), with z = x_t,

    -d/dt log alpha / (V q_z) [KL(q || q^theta) + IS(q_z, q^theta_z)], IS(a, b) = a/b - log(a/b) - 1

is UDLM's integrand (Duo, Sahoo et al. 2025, writes it without the cancelling terms) in the form of
GIDD (von Rütte et al. 2025, arXiv:2503.04482). `divergence` has what the two share.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.models.network import Apply, Params
from ddm_jax.models.readout import Readout, pick_by_mask
from ddm_jax.objectives.signature import Batch, LossOutput, Noise, share, uniform_time


def udlm(apply: Apply, params: Params, batch: Batch, noise: Noise, process: Uniform) -> LossOutput:
    """UDLM's loss at t ~ U(1e-3, 1). Optimises a bound on -log p(x0), all positions carry loss."""
    t = uniform_time(noise.u)
    xt = process.corrupt(noise.keys, batch["tokens"], t, batch["valid"])
    return udlm_at(apply, params, batch, xt, t, process)


def udlm_at(
    apply: Apply, params: Params, batch: Batch, xt: Array, t: Array, process: Uniform
) -> LossOutput:
    """The integrand at xt int32[b, L] and t float[b]; `bound` has KL(q(x_1 | x_0) || prior) too.

    Left out is what happens before t = 1e-3: -log p(x_0 | x_t) at that time.
    """
    x0, valid, size = batch["tokens"], batch["valid"], process.vocab_size
    clean = process.schedule.alpha(t)[:, None]
    each = process.schedule.one_minus_alpha(t)[:, None] / size
    readout = apply(params, xt, process.condition(t))
    q_xt = each + clean * (xt == x0)
    weight = jnp.where(valid, process.schedule.rate(t)[:, None] / (size * q_xt), 0)
    loss = divergence(readout, x0, xt, weight, clean, each).sum(axis=1)
    return LossOutput(loss, loss + valid.sum(axis=1) * process.prior_kl(), noised(batch, xt))


def divergence(
    readout: Readout,
    x0: Array,
    xt: Array,
    weight: Array,
    clean: Array,
    each: Array,
    masked: Array | float = 0.0,
) -> Array:
    """weight [KL(q || q^theta) + IS(q_z, q^theta_z)], z = x_t, of each position: float[b, L].

    q^theta gives a token each + clean p_y and the mask (an xt >= V) `masked`; q the same with the
    one-hot x_0 for p. With psi(d) = e^d - 1 - d, which is never
    negative, and d_y = log(q^theta_y / q_y) - log(q^theta_z / q_z),

        KL + IS = sum_y q_y psi(d_y).

    Args:
      readout: of p.
      x0: int32[b, L].
      xt: int32[b, L].
      weight: float[b, L]; positions where it is 0 are not read.
      clean: float[b, 1], the share of x_0.
      each: float[b, 1], the share of each token.
      masked: float[b, 1], the share of the mask.
    """

    def read(logits: Array, x0: Array, xt: Array, *shares: Array) -> Array:
        y, (clean, each, masked) = jnp.arange(logits.shape[-1]), shares
        ratio = (clean / each)[:, None].astype(logits.dtype)
        is_x0 = y == x0[:, None]
        d = jnp.log1p(ratio * jax.nn.softmax(logits, axis=-1)) - is_x0 * jnp.log1p(ratio)
        at_mask = -pick_by_mask(d, xt)  # 0 where x_t is the mask
        psi = _excess(d + at_mask[:, None])
        return each * psi.sum(axis=-1) + clean * pick_by_mask(psi, x0) + masked * _excess(at_mask)

    shares = (jnp.broadcast_to(share, x0.shape) for share in (clean, each, masked))
    return readout.losses(read, weight, x0, xt, *shares)


def noised(batch: Batch, xt: Array) -> dict[str, Array]:
    """The metric `noised`: the share of the valid positions where x_t is not x_0, float[b]."""
    return {"noised": share(xt != batch["tokens"], batch)}


def _excess(d: Array) -> Array:
    """psi(d) = e^d - 1 - d."""
    return jnp.expm1(d) - d
