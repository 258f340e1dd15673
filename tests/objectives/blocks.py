"""Block diffusion of an enumerable distribution (vocabulary 3, length 4): its exact means."""

import functools

import jax
import numpy as np

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.objectives import bd3lm
from tests.batch import batch_of
from tests.masking import LENGTH, MASKS, VOCAB, X0, XT, gauss
from tests.visible import visible_network

PROCESS = Absorbing(SCHEDULES["log_linear"].make(eps=0.0), VOCAB)


def over_times(losses_at):
    """E over t ~ U(0, 1) and masks of float64[81, 16] at t, for every x0.

    One t serves all blocks: the expectation is a sum over blocks, each with its own t. Exact for
    the polynomials in t that weighted losses are.
    """
    masked, total = MASKS.sum(1), 0
    for t, weight in zip(*gauss(0, 1, 4), strict=True):
        total += weight * losses_at(t) @ (t**masked * (1 - t) ** (LENGTH - masked))
    return total


def losses_of(loss_at, table):
    """over_times's argument: losses of every x0 under every mask by (table, batch, xt, t)."""
    batch, xt = batch_of(np.repeat(X0, len(MASKS), axis=0)), XT.reshape(-1, LENGTH)

    def at(t):
        return np.asarray(loss_at(table, batch, xt, np.full(xt.shape, t))).reshape(XT.shape[:2])

    return at


@functools.cache
def block_loss(size):
    """The loss of bd3lm_at on visible_network(table), by (table, batch, xt, t)."""

    def run(table, *given):
        return bd3lm.bd3lm_at(visible_network(table), {}, *given, PROCESS, size).loss

    return jax.jit(run)


def bound(table, x0, size, low=0.0, high=1.0):
    """The mean loss of one sequence over t ~ U(low, high), whose last token is padding."""
    masks, position = MASKS[~MASKS[:, -1]], np.arange(LENGTH)
    after = position // size > position[:, None] // size
    now = position // size == position[:, None] // size
    said = np.where(masks[:, None] & now, VOCAB, np.where(after, VOCAB, x0))  # [8, 4, 4]
    log_p = table[said @ (VOCAB + 1) ** position[::-1], position, x0]
    masked, total = masks.sum(1), 0
    for t, weight in zip(*gauss(low, high, 8), strict=True):
        law = t**masked * (1 - t) ** (LENGTH - 1 - masked)
        total -= weight / t * law @ (masks * log_p).sum(1)
    return total / (high - low)
