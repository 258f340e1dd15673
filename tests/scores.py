"""Exact scores of enumerable distributions, and the laws of SEDD's chains, from matrices alone.

A chain is as published: weights of the next state of each position, negative ones cut off, and the
denoiser as the last step. Q[x, y] is the rate from y to x, as in the paper.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import expm

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.models.readout import Readout
from ddm_jax.samplers.signature import SampleSpec
from tests.enumerable import all_sequences

PROCESS = {"absorbing": Absorbing, "uniform": Uniform}
MOST, BATCH = 8, 20_000  # steps and sequences of one program


def rates(kind, vocab):
    """Q: float64[V, V], or [V + 1, V + 1] with the mask last."""
    if kind == "uniform":
        return np.ones((vocab, vocab)) / vocab - np.eye(vocab)
    q = -np.eye(vocab + 1)
    q[vocab] += 1
    return q


def scores(joint, q, sigma_bar):
    """p_t(x with y at i) / p_t(x): float64[S^L, L, S] for S states."""
    vocab, length, number = joint.shape[0], joint.ndim, len(q)
    p_t, states = joint, all_sequences(number, length)
    for _ in range(length):  # each pass noises the first axis and puts it last
        p_t = np.tensordot(p_t, expm(sigma_bar * q)[:, :vocab], axes=(0, 1))
    table = np.zeros((*states.shape, number))
    for i in range(length):
        others = tuple(np.delete(states, i, axis=1).T)
        table[:, i] = np.moveaxis(p_t, i, -1)[others]
    return table / p_t[tuple(states.T)][:, None, None]


class Chain:
    """`steps` steps for a joint distribution and a network whose scores are off by a factor.

    kind: a key of PROCESS. wrong: by how much log scores are off, and where.
    """

    def __init__(self, joint, kind, schedule, steps, wrong=0.0):
        self.vocab, self.length, self.kind = joint.shape[0], joint.ndim, kind
        self.schedule, self.steps, self.q = schedule, steps, rates(kind, joint.shape[0])
        self.states = all_sequences(len(self.q), self.length)
        with jax.enable_x64(True):
            t = 1 - np.arange(steps) / steps
            self.sigma_bar = np.append(schedule.sigma_bar(t), 0)  # clean at the end
            self.rate = np.array(schedule.rate(t))
        self.is_x = np.eye(len(self.q))[self.states]
        noise = wrong * np.random.default_rng(0).normal(size=self.is_x.shape) * (1 - self.is_x)
        self.scores = [scores(joint, self.q, s) * np.exp(noise) for s in self.sigma_bar[:-1]]

    def moves(self, rule, i):
        """p(x_s | x_t) of every position in every state at step i: float64[S^L, L, S]."""
        last = i == self.steps - 1
        if rule == "euler" and not last:
            jumps = self.rate[i] / self.steps * self.q[self.states] * self.scores[i]
            jumps *= 1 - self.is_x
            weights = self.is_x * (1 - jumps.sum(-1, keepdims=True)) + jumps
        else:
            d = self.sigma_bar[i] - self.sigma_bar[i + 1]
            weights = (self.scores[i] @ expm(-d * self.q).T) * expm(d * self.q)[self.states]
        if last and self.kind == "absorbing":
            weights[..., -1] = 0
        weights = np.maximum(weights, 0)
        return weights / weights.sum(-1, keepdims=True)

    def law(self, rule, fixed=None, prompt=None, sharpen=None):
        """p(x) at the end, from the prior: float64[V^L]. sharpen: of the law of a jump."""
        fixed = np.zeros(self.length, bool) if fixed is None else fixed
        starts = (~fixed | (self.states == prompt)).all(1)
        if self.kind == "absorbing":
            starts &= (fixed | (self.states == self.vocab)).all(1)
        law = starts / starts.sum()
        for i in range(self.steps):
            moves = self.moves(rule, i)
            if sharpen:
                leave = moves * (1 - self.is_x)
                chance = leave.sum(-1, keepdims=True)
                jump = sharpen(leave / np.maximum(chance, 1e-300))
                moves = moves * self.is_x + chance * jump
            moves = np.where(fixed[:, None], self.is_x, moves)
            law = law @ moves[:, np.arange(self.length), self.states].prod(-1)
        clean = (self.states < self.vocab).all(1)
        np.testing.assert_allclose(law[clean].sum(), 1)
        return law[clean]

    def outputs(self, scale_by_sigma):
        """What a network says, with junk where nothing is to be read: (float32[MOST, ..], sigmas).

        The rows behind `steps` are there for the shape alone.
        """
        said = np.log(np.maximum(self.scores, 1e-30))
        if scale_by_sigma and self.kind == "absorbing":
            # log1p(-1) at the end of some schedules is no score's fault
            said += (np.log(np.expm1(self.sigma_bar[:-1])) + np.log(self.vocab))[
                :, None, None, None
            ]
        junk = 50 * self.is_x
        if self.kind == "absorbing":  # tokens do not move, whatever is said of them
            junk = 50 * (self.states < self.vocab)[..., None] * np.arange(1.0, self.vocab + 2)
        said = (said + junk)[..., : self.vocab]
        room = MOST - self.steps
        said = np.pad(said, ((0, room), (0, 0), (0, 0), (0, 0)))
        return {
            "said": jnp.asarray(said, jnp.float32),
            "sigma": jnp.asarray(np.pad(self.sigma_bar[:-1], (0, room), constant_values=1e9)),
        }

    def sample(self, sampler, count, fixed=None, prompt=None, scale_by_sigma=True, **spec):
        """(tokens, nfe) of the jitted sampler; spec: temperature, top_k, top_p."""
        fixed = np.zeros(self.length, bool) if fixed is None else fixed
        prompt = np.zeros(self.length, np.int32) if prompt is None else prompt
        fixed, prompt = (np.broadcast_to(x, (count, self.length)) for x in (fixed, prompt))
        process = PROCESS[self.kind](self.schedule, self.vocab)
        run = _jitted(sampler, process, scale_by_sigma, len(self.q))
        spec = SampleSpec(self.steps, **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, **spec})
        outputs = self.outputs(scale_by_sigma)
        draws = []
        for start in range(0, count, BATCH):
            rows = slice(start, start + BATCH)
            tokens, stats = run(outputs, step_key(0, start), prompt[rows], fixed[rows], spec)
            draws.append((np.asarray(tokens), np.asarray(stats.nfe)))
        return tuple(np.concatenate(each) for each in zip(*draws, strict=True))


@functools.cache
def _jitted(sampler, process, scale_by_sigma, number):
    """One function for all tables of a size: it compiles once."""

    def apply(params, tokens, sigma):
        step = jnp.argmin(abs(sigma[:, None] - params["sigma"]), axis=1)
        row = (tokens * number ** np.arange(tokens.shape[1])[::-1]).sum(-1)
        hidden = params["said"][step, row]
        vocab = hidden.shape[-1]
        return Readout(hidden, jnp.eye(vocab), jnp.zeros(vocab), vocab)

    def run(params, key, prompt, fixed, spec):
        options = {"scale_by_sigma": False} if not scale_by_sigma else {}
        return sampler(apply, params, key, prompt, fixed, process, spec, **options)

    return jax.jit(run)
