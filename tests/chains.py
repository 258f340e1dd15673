"""D3PM chains small enough for explicit matrices, made here from the paper's formulas alone."""

import numpy as np
from scipy.linalg import expm
from scipy.optimize import brentq

from ddm_jax.diffusion import d3pm, d3pm_gaussian, d3pm_nearest
from ddm_jax.diffusion.discrete_schedules import d3pm_cosine, d3pm_mutual_information

NAMES = ("absorbing", "uniform", "gaussian", "nearest")
NEIGHBOURS = 1


def table(vocab):
    """Embeddings whose neighbour graph is connected: points on a widening arc."""
    angle = 1.15 ** np.arange(vocab)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * np.arange(1, vocab + 1)[:, None]


def gaussian_alpha_bar(steps):
    """Noise that mixes three tokens in any number of steps: beta is of order 1 / log T.

    It changes from step to step, so that the matrices do not commute.
    """
    beta = np.linspace(0.7, 1.2, steps) / np.log(max(steps / 6, 4))
    return np.cumprod(np.append(1, 1 - beta))


def make(name, steps, vocab):
    """The process under test; inside enable_x64."""
    return {
        "absorbing": lambda: d3pm.absorbing(d3pm_mutual_information(steps), vocab),
        "uniform": lambda: d3pm.uniform(d3pm_cosine(steps), vocab),
        "gaussian": lambda: d3pm_gaussian.gaussian(gaussian_alpha_bar(steps), vocab),
        "nearest": lambda: d3pm_nearest.neighbour_process(
            d3pm_mutual_information(steps), table(vocab), NEIGHBOURS
        ),
    }[name]()


def one_step(name, steps, vocab):
    """[Q_1 .. Q_T], each float64[V, V]; for absorbing noise the last state is the mask."""
    t = np.arange(1, steps + 1)
    if name == "absorbing":
        states = vocab + 1
        to_mask = np.zeros((states, states))
        to_mask[:, vocab] = 1
        return [(1 - b) * np.eye(states) + b * to_mask for b in 1 / (steps - t + 1)]
    if name == "uniform":
        f = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2)
        beta = np.minimum(1 - f[1:] / f[:-1], 0.999)
        return [(1 - b) * np.eye(vocab) + b / vocab for b in beta]
    if name == "gaussian":
        beta = 1 - gaussian_alpha_bar(steps)[1:] / gaussian_alpha_bar(steps)[:-1]
        return [_gaussian(b, vocab) for b in beta]
    rate = _rate(table(vocab))
    modes = np.sort(-np.linalg.eigvalsh(rate))[1:]
    latest = -np.log(1e-6) / modes[0]

    def kept(c):
        return np.exp(-c * modes).mean()  # (tr exp(c R) - 1) / (V - 1)

    clock = [0.0]
    for alpha in 1 - t / steps:
        late = kept(latest) > alpha
        clock.append(latest if late else brentq(lambda c, a=alpha: kept(c) - a, 0, latest))
    return [expm(c * rate) for c in np.diff(clock)]


def products(name, steps, vocab):
    """[I, Q_1, Q_1 Q_2, ..], float64[T + 1, V, V]."""
    chain = one_step(name, steps, vocab)
    out = [np.eye(len(chain[0]))]
    for q in chain:
        out.append(out[-1] @ q)
    return np.array(out)


def prior(name, vocab):
    """The law of x_T where the reverse chain starts: float64[V]."""
    return np.eye(vocab + 1)[vocab] if name == "absorbing" else np.full(vocab, 1 / vocab)


def _gaussian(beta, vocab):
    q = np.zeros((vocab, vocab))
    total = sum(np.exp(-4 * n**2 / ((vocab - 1) ** 2 * beta)) for n in range(-(vocab - 1), vocab))
    for i in range(vocab):
        for j in range(vocab):
            if i != j:
                q[i, j] = np.exp(-4 * (i - j) ** 2 / ((vocab - 1) ** 2 * beta)) / total
        q[i, i] = 1 - q[i].sum()
    return q


def _rate(embedding):
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    near = unit @ unit.T
    graph = np.zeros_like(near)
    for i in range(len(near)):
        others = sorted((j for j in range(len(near)) if j != i), key=lambda j: -near[i, j])
        graph[i, others[:NEIGHBOURS]] = 1
    rate = (graph + graph.T) / (2 * NEIGHBOURS)
    return rate - np.diag(rate.sum(1))
