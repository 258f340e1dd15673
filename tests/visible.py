"""Networks for enumeration that know what `attend` lets them see, and nothing else."""

import jax.numpy as jnp
import numpy as np

from ddm_jax.models.network import Readout
from tests.enumerable import all_sequences, conditionals


def visible_network(log_p: np.ndarray, ahead: int = 0):
    """apply(params, tokens[B, N], ..., attend, positions) over a table log_p[(V + 1)^L, L, V].

    Each query answers the row of the table that its visible keys spell: key k says what x is at
    positions[k] - ahead, a mask says nothing, and nor does a key that is not visible. Whatever
    leaks therefore changes the answer. ahead = 1 is for inputs that are shifted by one.
    """
    vocab, length = log_p.shape[-1], log_p.shape[-2]
    log_p = jnp.asarray(log_p)

    def apply(params, tokens, sigma=None, attend=None, positions=None):
        number = tokens.shape[1]
        positions = jnp.arange(number) if positions is None else positions
        sees = jnp.ones((number, number), bool) if attend is None else attend
        sees = jnp.tri(number, dtype=bool) if isinstance(attend, str) else sees
        at = (positions - ahead)[:, None] == jnp.arange(length)
        says = sees[:, None, :] & at.T  # [q, position of x, k]
        state = jnp.where(says, tokens[:, None, None], vocab).min(-1)  # the mask is the largest id
        index = (state * (vocab + 1) ** jnp.arange(length)[::-1]).sum(-1)
        hidden = log_p[index, positions]
        return Readout(
            hidden, jnp.eye(vocab, dtype=hidden.dtype), jnp.zeros(vocab, hidden.dtype), vocab
        )

    return apply


def exact_table(joint: np.ndarray) -> np.ndarray:
    """log p(x_i | what is seen) of the joint distribution, in every state."""
    states = all_sequences(joint.shape[0] + 1, joint.ndim)
    return np.log(np.maximum(conditionals(joint, states), 1e-300))


def wrong_table(vocab: int, length: int, seed: int = 1) -> np.ndarray:
    """Normalised, and otherwise random."""
    logits = np.random.default_rng(seed).normal(size=((vocab + 1) ** length, length, vocab))
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)
