"""What the exact denoiser attains under each objective that is a bound: the NLL of a sequence."""

import functools

import jax
import numpy as np

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.objectives import ar, gidd, radd, udlm
from ddm_jax.objectives.mdlm import mdlm_at
from tests import masking
from tests.batch import batch_of
from tests.objectives import blocks, score_entropy
from tests.objectives.enumeration import (
    VOCAB,
    corruptions,
    even,
    masking_matrix,
    means,
    subsets_masked,
    unseen,
)
from tests.objectives.table import (
    EPS,
    LAST,
    P_UNIFORM,
    PAIR,
    SCORE_EPS,
    UNIFORM,
    hybrid,
    hybrid_matrix_at,
    redrawn,
    sedd_means,
)
from tests.plug_in import hybrid_matrix, leave_one_out, time_nodes, uniform_matrix
from tests.visible import exact_table, visible_network

EXACT = exact_table(masking.JOINT)


def masked_in_time():
    """Every x_t of t ~ U(0, 1), all of whose noise is 1 - EPS."""
    return corruptions(lambda t: masking_matrix((1 - EPS) * t), even(0, 1), 4)


def masked_at_ratios():
    """Every x_t of a mask ratio in (0, 1)."""
    return corruptions(masking_matrix, even(0, 1), 4)


def any_number_masked():
    """Every number of masks."""
    return subsets_masked(4)


# -> (the loss, what it is the mean of, what the schedule leaves of alpha)
BY_MASKS = {
    "radd_t_dse": (radd.t_dse_at, masked_in_time, EPS),
    "radd_t_dce": (radd.t_dce_at, masked_in_time, EPS),
    "radd_lambda_dce": (radd.lambda_dce_at, masked_at_ratios, 0.0),
    "radd_ao": (radd.any_order_at, any_number_masked, 0.0),
    "mdlm": (mdlm_at, masked_in_time, EPS),
}


def by_masks(name, table):
    """The mean loss of each sequence with these answers."""
    loss_at, every, eps = BY_MASKS[name]
    made = Absorbing(SCHEDULES["log_linear"].make(eps=eps), VOCAB)
    return means(loss_at, made, every(), table[None])


def attained_by_masks(name):
    """Plus what x_1 leaves."""
    left = unseen(masking.JOINT, masking_matrix(1 - BY_MASKS[name][2]))
    return by_masks(name, EXACT) + left, masking.NLL, 1e-9


def attained_by_blocks(size):
    """As by_masks, in blocks."""
    losses_at = blocks.losses_of(blocks.block_loss(size), EXACT)
    with jax.enable_x64(True):
        return blocks.over_times(losses_at), masking.NLL, 1e-9


def attained_from_the_left():
    """The autoregressive likelihood."""
    with jax.enable_x64(True):
        network = visible_network(EXACT, ahead=1)
        run = jax.jit(lambda batch: ar.ar(network, {}, batch, None, blocks.PROCESS).loss)
        return np.asarray(run(batch_of(masking.X0))), masking.NLL, 1e-12


def attained_by_udlm():
    """p(x0_i | x_t at the other positions) is what UDLM wants."""
    every = redrawn()
    says = np.log([leave_one_out(PAIR, uniform_matrix((1 - EPS) * t, VOCAB)) for t in every.levels])
    got = means(udlm.udlm_at, UNIFORM, every, says)
    return got + unseen(PAIR, LAST), -np.log(PAIR).reshape(-1), 1e-8


def attained_by_gidd(p_uniform):
    """p_uniform = 0 stands for 2e-9, which the tolerance allows for."""
    every = corruptions(hybrid_matrix_at(p_uniform), time_nodes(), 2)
    p = [leave_one_out(PAIR, hybrid_matrix(t, VOCAB, p_uniform)) for t in every.levels]
    got = means(gidd.gidd_at, hybrid(p_uniform), every, np.log(np.maximum(p, 1e-300)), "bound")
    return got, -np.log(PAIR).reshape(-1), 1e-7 if p_uniform else 1e-6


def attained_by_scores(kind):
    """The true score, scaled as the loss wants."""
    every, says = score_entropy.everything(kind, SCORE_EPS), score_entropy.exact(kind, SCORE_EPS)
    says = score_entropy.scaled(says, SCORE_EPS) if kind == "absorb" else says
    left = unseen(score_entropy.JOINT, score_entropy.MATRIX[kind](1 - SCORE_EPS))
    return sedd_means(kind, every, says) + left, -np.log(score_entropy.JOINT).reshape(-1), 1e-6


# -> (what the exact denoiser has for each sequence, its -log p, the relative tolerance)
ATTAINED = {
    **{name: functools.partial(attained_by_masks, name) for name in BY_MASKS},
    **{
        f"bd3lm, blocks of {size}": functools.partial(attained_by_blocks, size)
        for size in (1, 2, 4)
    },
    "ar": attained_from_the_left,
    "udlm": attained_by_udlm,
    **{f"gidd, {p}": functools.partial(attained_by_gidd, p) for p in (0.0, P_UNIFORM, 0.8)},
    **{f"sedd_{kind}": functools.partial(attained_by_scores, kind) for kind in score_entropy.KINDS},
}
