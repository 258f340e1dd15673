"""True scores under SEDD's noise, and what its losses say of them (vocabulary 3, length 3)."""

import numpy as np

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from ddm_jax.objectives import sedd
from tests.enumerable import all_sequences, random_joint
from tests.objectives.enumeration import VOCAB, Corruptions, corruptions, crowded, masking_matrix
from tests.plug_in import uniform_matrix

LENGTH = 3
JOINT = random_joint(VOCAB, LENGTH)
KINDS = ["absorb", "uniform"]
LOSS_AT = {"absorb": sedd.absorb_at, "uniform": sedd.uniform_at}
MATRIX = {"absorb": masking_matrix, "uniform": lambda m: uniform_matrix(m, VOCAB)}


def make(kind, schedule="log_linear", **options):
    """The process."""
    schedule = SCHEDULES[schedule].make(**options)
    return {"absorb": Absorbing, "uniform": Uniform}[kind](schedule, VOCAB)


def everything(kind, eps, low=0.0) -> Corruptions:
    """Every x_t at t ~ U(low, 1), under log-linear noise of this eps."""
    return corruptions(lambda t: MATRIX[kind]((1 - eps) * t), crowded(low), LENGTH)


def marginals(kind, eps, low=0.0):
    """q(x_t) at each of these times: float64[T, S^L]."""
    chance = everything(kind, eps, low).chance
    law = np.einsum("x,txs->ts", JOINT.reshape(-1), chance)
    return law / law.sum(1, keepdims=True)


def log_scores(law):
    """log p_t(x_t with y at i) / p_t(x_t): float64[T, S^L] -> float64[T, S^L, L, V]."""
    size = round(law.shape[1] ** (1 / LENGTH))
    states, place = all_sequences(size, LENGTH), size ** np.arange(LENGTH)[::-1]
    moved = (np.arange(VOCAB) - states[..., None]) * place[:, None]
    other = np.arange(len(states))[:, None, None] + moved
    return np.log(law[:, other]) - np.log(law)[..., None, None]


def exact(kind, eps, low=0.0):
    """The true log scores at the times of `everything`."""
    return log_scores(marginals(kind, eps, low))


def scaled(log_score, eps, low=0.0):
    """What a network that scales by sigma says of masks: + log(e^sigma_bar - 1) + log V."""
    m = (1 - eps) * crowded(low)[0]
    return log_score + np.log(VOCAB * m / (1 - m))[:, None, None, None]
