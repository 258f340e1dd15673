"""GenMD4's bound in numpy: masking with alpha_v(t) = 1 - (1 - eps) t^w_v for each token v."""

import numpy as np

from tests.masking import LENGTH, MASKS, TIMES, VOCAB, X0, cross_entropies, gauss, mask_law

W, EPS, FIRST = np.array([0.6, 1.0, 2.5]), 1e-4, 1e-3


def learnt(w):
    """params whose schedule has these w."""
    return {"objective": {"raw_power": np.log(np.expm1(w))}}


def masked_chance(w, t):
    """1 - alpha of each token of each x0: float64[..., 81, 4] from t[...]."""
    return (1 - EPS) * np.asarray(t)[..., None, None] ** w[X0]


def constants(w):
    """Reconstruction at t = 1e-3, by a guess of v in proportion to t^w_v, and prior; each x0."""
    m = masked_chance(w, FIRST)
    guess = FIRST**w / (FIRST**w).sum()
    return -(m * np.log(guess)[X0]).sum(-1) + LENGTH * EPS * np.log(VOCAB)


def bound_at(log_p, w, t):
    """The bound at one time, for each x0: w / t times KL rates under masks whose law has w."""
    rate = w[X0][:, None] * (cross_entropies(log_p) - 1) + np.exp(log_p) @ w
    diffusion = (1 - FIRST) / t * np.where(MASKS, rate, 0).sum(-1)
    return (mask_law(masked_chance(w, t)) * diffusion).sum(-1) + constants(w)


def over_times(of_time):
    """The mean of a function of t ~ U(1e-3, 1), by nodes that are even in log t."""
    log_t, weight = gauss(np.log(FIRST), 0, TIMES)
    t = np.exp(log_t)
    return sum(w * each * of_time(each) for w, each in zip(weight, t, strict=True)) / (1 - FIRST)
