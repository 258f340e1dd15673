"""D3PM and RDM on an enumerable distribution (vocabulary 3, length 2), by explicit matrices."""

import dataclasses
import functools

import numpy as np

from tests import chains
from tests.enumerable import all_sequences, random_joint
from tests.objectives.enumeration import VOCAB, Corruptions, corruptions

LENGTH, STEPS = 2, 4
JOINT = random_joint(VOCAB, LENGTH).reshape(-1)
X0 = all_sequences(VOCAB, LENGTH)
LAMBDA = {  # RDM's, of t = 1 .. 4
    "linear": [1, 3 / 4, 1 / 2, 1 / 4],
    "reciprocal": [1, 1 / 2, 1 / 3, 1 / 4],
    "none": [1, 1, 1, 1],
}


def states(name):
    """How many there are, the mask included."""
    return VOCAB + (name == "absorbing")


@functools.cache
def process_of(name, steps=STEPS):
    """The process under test; inside enable_x64."""
    return chains.make(name, steps, VOCAB)


@functools.cache
def everything(name, steps=STEPS) -> Corruptions:
    """Every x0 and x_t at the times 1/T .. 1."""
    product = chains.products(name, steps, VOCAB)
    step = np.arange(1, steps + 1)
    times = step / steps, np.full(steps, 1 / steps)
    every = corruptions(lambda t: product[round(t * steps)], times, LENGTH)
    # what cannot happen may have any loss but no nan
    return dataclasses.replace(every, chance=np.maximum(every.chance, 1e-300))


def leave_one_out(name, steps):
    """p(x0_i | x_t at the other position), t = 1..T: float64[T, S^2, L, V]."""
    product, joint = chains.products(name, steps, VOCAB), JOINT.reshape(VOCAB, VOCAB)
    xt = all_sequences(states(name), LENGTH)
    out = np.zeros((steps, len(xt), LENGTH, VOCAB))
    for t in range(1, steps + 1):
        seen = product[t][:VOCAB]  # from x0 to x_t
        of_first, of_second = (joint @ seen)[:, xt[:, 1]].T, (joint.T @ seen)[:, xt[:, 0]].T
        out[t - 1] = np.stack([of_first, of_second], axis=1)
    total = out.sum(-1, keepdims=True)
    return np.divide(out, total, out=np.full_like(out, 1 / VOCAB), where=total > 0)


def wrong(name, steps=STEPS):
    """A denoiser that answers every state and time at random: float64[T, S^2, L, V]."""
    shape = steps, states(name) ** LENGTH, LENGTH
    return np.random.default_rng(1).dirichlet(np.ones(VOCAB), size=shape)


def reverse_laws(name, p):
    """p(x_{t-1, i} | x_t) by explicit matrices, t = 1..T: float64[T, S^2, L, S]."""
    chain, product = (f(name, len(p), VOCAB) for f in (chains.one_step, chains.products))
    xt = all_sequences(states(name), LENGTH)
    to_xt = np.stack([q.T[xt] for q in chain])
    law = to_xt * np.einsum("tnlv,tvs->tnls", p, product[:-1, :VOCAB])
    total = law.sum(-1, keepdims=True)
    return np.divide(law, total, out=np.full_like(law, np.nan), where=total > 0)


def bound_by_matrices(name, p):
    """L_vb of D3PM eq. 1 for each x0, with every law by Bayes' rule: float64[9]."""
    chain, product = (f(name, len(p), VOCAB) for f in (chains.one_step, chains.products))
    xt, law, total = all_sequences(states(name), LENGTH), reverse_laws(name, p), np.zeros(9)
    for x, x0 in enumerate(X0):
        for i in range(LENGTH):
            last, prior = product[-1][x0[i]], chains.prior(name, VOCAB)
            total[x] += (last[last > 0] * np.log(last[last > 0] / prior[last > 0])).sum()
        for t in range(1, len(p) + 1):
            for n, state in enumerate(xt):
                chance = product[t][x0, state].prod()
                for i in range(LENGTH if chance > 0 else 0):
                    q = product[t - 1][x0[i]] * chain[t - 1][:, state[i]]
                    q, p_s = q / q.sum(), law[t - 1, n, i]
                    total[x] += chance * (q[q > 0] * np.log(q[q > 0] / p_s[q > 0])).sum()
    return total


def cross_entropy(name, p):
    """The mean of sum_i -log p(x0_i | x_t) for each x0: float64[9]."""
    every = everything(name, len(p))
    step, _, state = every.rows
    x0, _ = every.tokens
    picked = np.take_along_axis(p[step, state], x0[..., None], axis=-1)
    return every.mean(-np.log(picked).sum((1, 2)))


def rdm_answers(kind):
    """Logits of every x_t at every t, not normalised: float64[T, S^2, L, V]."""
    shape = STEPS, states(kind) ** LENGTH, LENGTH, VOCAB
    return np.random.default_rng(4).normal(0.5, 2, size=shape)


def rdm_losses(kind, weighting, smoothing):
    """RDM's loss in each row of `everything`: float64[N]."""
    (step, _, state), (x0, xt) = everything(kind).rows, everything(kind).tokens
    logits = rdm_answers(kind)
    log_p = (logits - np.logaddexp.reduce(logits, -1, keepdims=True))[step, state]
    ce = -np.take_along_axis(log_p, x0[..., None], axis=-1)[..., 0]
    weight = np.array(LAMBDA[weighting])[step, None]
    each = (1 - smoothing) * weight * ce - smoothing * log_p.mean(-1)
    return STEPS * np.where(xt == x0, 0, each).sum(-1)
