"""A distribution small enough to enumerate, its exact denoiser, every way to mask a sequence."""

import itertools

import jax.numpy as jnp
import numpy as np

from ddm_jax.models.readout import Readout


def random_joint(vocab: int, length: int, seed: int = 0) -> np.ndarray:
    """p(x), float64[vocab] * length, far from independent."""
    p = np.random.default_rng(seed).gamma(0.3, size=(vocab,) * length) + 1e-4
    return p / p.sum()


def all_sequences(vocab: int, length: int) -> np.ndarray:
    """int32[vocab^length, length]."""
    return np.array(list(itertools.product(range(vocab), repeat=length)), np.int32)


def all_masks(length: int) -> np.ndarray:
    """bool[2^length, length]."""
    return np.array(list(itertools.product([False, True], repeat=length)))


def conditionals(joint: np.ndarray, xt: np.ndarray) -> np.ndarray:
    """p(x0_i = v | the unmasked positions of xt), float64[N, length, vocab]; the mask id is V."""
    vocab, length = joint.shape[0], joint.ndim
    sequences = all_sequences(vocab, length)
    fits = ((xt[:, None] == vocab) | (xt[:, None] == sequences)).all(-1)
    weight = fits * joint.reshape(-1)
    one_hot = np.eye(vocab)[sequences]
    return np.einsum("ns,slv->nlv", weight, one_hot) / weight.sum(1)[:, None, None]


def table_network(log_p: np.ndarray):
    """apply(params, tokens) that answers log_p[(V + 1)^L, L, V] at the number that xt spells."""
    vocab, length = log_p.shape[-1], log_p.shape[-2]
    log_p = jnp.asarray(log_p)

    def apply(params, tokens, sigma=None, read=None):
        index = (tokens * (vocab + 1) ** jnp.arange(length)[::-1]).sum(-1)
        eye = jnp.eye(vocab, dtype=log_p.dtype)
        readout = Readout(log_p[index], eye, jnp.zeros(vocab, log_p.dtype), vocab)
        return readout if read is None else readout.at(jnp.minimum(read, length - 1))

    return apply


def exact_denoiser(joint: np.ndarray):
    """The network whose conditionals are those of the joint distribution."""
    states = all_sequences(joint.shape[0] + 1, joint.ndim)
    return table_network(np.log(np.maximum(conditionals(joint, states), 1e-300)))


def wrong_denoiser(vocab: int, length: int, seed: int = 1):
    """A network that answers every state at random, and normalised."""
    logits = np.random.default_rng(seed).normal(size=((vocab + 1) ** length, length, vocab))
    return table_network(logits - np.logaddexp.reduce(logits, -1, keepdims=True))
