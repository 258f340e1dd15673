"""Networks for enumeration that know what `attend` lets them see, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.models.readout import Readout
from tests.enumerable import all_sequences, conditionals


def visible_network(log_p: np.ndarray, ahead: int = 0):
    """apply(params, tokens[B, N], ..., attend, positions) over a table log_p[(V + 1)^L, L, V].

    Each query answers the row of the table that its visible keys spell: key k says what x is at
    positions[k] - ahead, a mask says nothing, and nor does a key that is not visible. Whatever
    leaks therefore changes the answer. ahead = 1 is for inputs that are shifted by one. The cache
    is the tokens themselves.
    """
    vocab, length = log_p.shape[-1], log_p.shape[-2]
    log_p = jnp.asarray(log_p)

    def apply(
        params, tokens, sigma=None, attend=None, positions=None, cache=None, keep=False, read=None
    ):
        number = tokens.shape[1]
        positions = key_positions = jnp.arange(number) if positions is None else positions
        if cache is not None:
            tokens = jax.lax.dynamic_update_slice_in_dim(cache, tokens, positions[0], axis=1)
            key_positions = jnp.arange(tokens.shape[1])
        sees = jnp.ones((number, number), bool) if attend is None else attend
        sees = jnp.tri(number, dtype=bool) if isinstance(attend, str) else sees
        at = (key_positions - ahead)[:, None] == jnp.arange(length)
        says = sees[:, None, :] & at.T  # [q, position of x, k]
        state = jnp.where(says, tokens[:, None, None], vocab).min(-1)  # the mask is the largest id
        index = (state * (vocab + 1) ** jnp.arange(length)[::-1]).sum(-1)
        hidden = log_p[index, positions]
        kept = tokens if keep or cache is not None else None
        eye = jnp.eye(vocab, dtype=hidden.dtype)
        readout = Readout(hidden, eye, jnp.zeros(vocab, hidden.dtype), vocab, kept)
        return readout if read is None else readout.at(jnp.minimum(read, number - 1))

    return apply


def exact_table(joint: np.ndarray) -> np.ndarray:
    """log p(x_i | what is seen) of the joint distribution, in every state."""
    states = all_sequences(joint.shape[0] + 1, joint.ndim)
    return np.log(np.maximum(conditionals(joint, states), 1e-300))


def wrong_table(vocab: int, length: int, seed: int = 1) -> np.ndarray:
    """Normalised, and otherwise random."""
    logits = np.random.default_rng(seed).normal(size=((vocab + 1) ** length, length, vocab))
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)
