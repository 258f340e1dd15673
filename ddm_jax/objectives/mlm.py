"""The masked language model of BERT (Devlin et al. 2018, arXiv:1810.04805), and its evaluation.

A baseline: one fixed level of noise teaches conditionals, but bounds no likelihood. Evaluation is
by the pseudo-log-likelihood (Besag 1975; Salazar et al. 2020, arXiv:1910.14659), which is not
comparable with a bound: each token is predicted from all others, later ones too.
"""

import jax
import jax.numpy as jnp
from jax import Array

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import uniforms
from ddm_jax.models.network import Apply, Params
from ddm_jax.objectives.masked import masked_cross_entropy
from ddm_jax.objectives.signature import Batch, LossOutput, Noise, share

SELECTED, MASKED, REDRAWN = 0.15, 0.8, 0.1  # of the positions; of the selected ones


def mlm(apply: Apply, params: Params, batch: Batch, noise: Noise, process: Absorbing) -> LossOutput:
    """BERT's masked language modelling (section 3.1). Optimises cross entropy, not a bound."""
    xt, selected = select(noise.keys, batch["tokens"], batch["valid"], process.mask_id)
    return mlm_at(apply, params, batch, xt, selected)


def mlm_at(apply: Apply, params: Params, batch: Batch, xt: Array, selected: Array) -> LossOutput:
    """(1 / 0.15) sum_selected -log p(x0_i given x_t): xt int32[b, L], selected bool[b, L].

    The factor makes it nats per sequence: in expectation, the sum over all n tokens of the cross
    entropy that each has when it is selected.
    """
    weight = jnp.where(selected, 1 / SELECTED, 0)
    loss = apply(params, xt).cross_entropy(batch["tokens"], weight).sum(axis=1)
    return LossOutput(loss, None, {"selected": share(selected, batch)})


def select(keys: Array, x0: Array, valid: Array, mask_id: int) -> tuple[Array, Array]:
    """Each valid position is selected with probability 0.15, on its own.

    Of those 80 % turn into the mask and 10 % into a random token (perhaps their own); 10 % stay.
    key[b], int32[b, L], bool[b, L] -> (xt int32[b, L], selected bool[b, L]).
    """
    when, what = jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    u = uniforms(when, x0.shape[1:])
    drawn = jax.vmap(lambda key: jax.random.randint(key, x0.shape[1:], 0, mask_id))(what)
    xt = jnp.where(u < SELECTED * (MASKED + REDRAWN), drawn, x0)
    xt = jnp.where(u < SELECTED * MASKED, mask_id, xt)
    return jnp.where(valid, xt, x0), (u < SELECTED) & valid


def mlm_pseudo(
    apply: Apply, params: Params, batch: Batch, noise: Noise, process: Absorbing
) -> LossOutput:
    """sum_i -log p(x_i given all others), estimated at one random position for each sequence."""
    valid = batch["valid"]
    n = valid.sum(axis=1)
    number = jnp.minimum(jnp.floor(noise.u * n).astype(jnp.int32), n - 1)
    chosen = valid & (jnp.cumsum(valid, axis=1) - 1 == number[:, None])
    xt = jnp.where(chosen, process.mask_id, batch["tokens"])
    return mlm_pseudo_at(apply, params, batch, xt, process)


def mlm_pseudo_at(
    apply: Apply, params: Params, batch: Batch, xt: Array, process: Absorbing
) -> LossOutput:
    """n (-log p(x_i given all others)) at the one position i that is masked in xt int32[b, L]."""
    weight = batch["valid"].sum(axis=1)
    return masked_cross_entropy(apply(params, xt), batch, xt, process.mask_id, weight)
