"""Every sampler on networks small enough to enumerate: the table behind test_laws.py.

Rows with the same sampler, process and options share one compiled program, whatever their networks
say.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.hybrid import Hybrid
from ddm_jax.diffusion.process import Process
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.diffusion.uniform import Uniform
from tests import laws
from tests.chain_rule import law_of_order
from tests.enumerable import all_sequences, conditionals
from tests.plug_in import hybrid_matrix, leave_one_out, uniform_matrix
from tests.samplers.adaptive_rules import adaptive_law
from tests.samplers.cases import (
    EPS,
    JOINT,
    LOG_LINEAR,
    MASKING,
    STATES,
    VOCAB,
    Case,
    Law,
    always,
    each_hit_step,
    each_position,
    free,
    in_time,
)
from tests.samplers.score_cases import SCORES
from tests.visible import exact_table, visible_network, wrong_table

EXACT = {length: exact_table(joint) for length, joint in JOINT.items()}


def masking(length: int) -> Law:
    """That of `ancestral` and its equals, with the exact denoiser."""
    return lambda steps, start: laws.absorbing_law(JOINT[length], steps, start)


def few_or_many(steps: int, start: Sequence[int]) -> np.ndarray:
    """At 100,000 steps two of four positions move at once in 6 of 10^5 samples: not seen."""
    return masking(4)(steps, start) if steps < 1_000 else laws.given(JOINT[4], start)


ABSORBING = {
    "ancestral": Case(
        "ancestral",
        masking(3),
        always(EXACT[3]),
        steps=(16, 1, 2, 7),
        unlike=lambda: [masking(3)(5, free(3)), JOINT[3].reshape(-1)],
    ),
    "event_driven": Case(
        "event_driven",
        few_or_many,
        always(EXACT[4]),
        length=4,
        steps=(1, 2, 100_000, 7),
        unlike=lambda: [masking(4)(5, free(4)), JOINT[4].reshape(-1)],
        nfe=each_hit_step,
    ),
    "cached": Case("cached", masking(4), always(EXACT[4]), length=4, steps=(1, 2, 7), nfe=None),
}


POWERS = np.array([0.3, 1.0, 4.0])


def vector_law(powers: np.ndarray) -> Law:
    """v is revealed with p_v (1 - (s/t)^w_v)."""
    p0 = conditionals(JOINT[3], STATES[3])

    def law(steps: int, start: Sequence[int]) -> np.ndarray:
        moves = (laws.reveals(1 - (s / t) ** powers, p0, STATES[3]) for s, t in laws.times(steps))
        return laws.chain_law(np.eye(VOCAB + 1)[VOCAB], moves, start, VOCAB)

    return law


VECTOR = {
    "vector_ancestral": Case(
        "vector_ancestral",
        vector_law(POWERS),
        lambda steps: (
            always(EXACT[3])(steps)
            | {"objective": {"raw_power": jnp.log(jnp.expm1(jnp.float32(POWERS)))}}
        ),
        steps=(3,),
        unlike=lambda: [vector_law(np.ones(3))(3, free(3))],
        process=Absorbing(SCHEDULES["linear"].make(), VOCAB),
    )
}


def blockwise_law(size: int) -> Law:
    """Blocks from the left in equal steps each; a block does not see what is fixed after it.

    Blocks that are still masked are what the exact denoiser has marginalised.
    """
    positions = np.arange(4)

    def law(steps: int, start: Sequence[int]) -> np.ndarray:
        moves = []
        for first in range(0, 4, size):
            seen = np.where(positions < first + size, STATES[4], VOCAB)
            now = (positions >= first) & (positions < first + size)
            for s, t in laws.times(steps * size // 4):
                each = laws.reveals((t - s) / t, conditionals(JOINT[4], seen), STATES[4])
                moves.append(np.where(now[:, None], each, np.eye(VOCAB + 1)[STATES[4]]))
        return laws.chain_law(np.eye(VOCAB + 1)[VOCAB], moves, start, VOCAB)

    return law


BLOCKWISE = {
    f"blockwise, blocks of {size}": Case(
        "blockwise",
        blockwise_law(size),
        lambda steps: {},
        length=4,
        steps=steps,
        unlike=(lambda: [JOINT[4].reshape(-1)]) if size > 1 else list,
        nfe=None,
        process=MASKING,
        apply=visible_network(np.float32(EXACT[4])),
        options=(("block_size", size),),
    )
    for size, steps in ((1, (4, 12)), (2, (6, 2)), (4, (3,)))
}


def left_law(steps: int, start: Sequence[int]) -> np.ndarray:
    """Each free position given what is on its left; what is fixed is only kept."""
    x, law = all_sequences(VOCAB, 3), np.ones(VOCAB**3)
    for i in range(3):
        seen = np.where(np.arange(3) < i, x, VOCAB)
        p = conditionals(JOINT[3], seen)[np.arange(len(x)), i, x[:, i]]
        law *= p if start[i] == VOCAB else x[:, i] == start[i]
    return law


WRONG = wrong_table(VOCAB, 3)
ORDERS = {"left": [0, 1, 2], "right": [2, 1, 0], "2,0,1": [2, 0, 1]}


def order_law(order: str, start: Sequence[int]) -> np.ndarray:
    """That of the wrong network; "random" is every order as often."""
    orders = itertools.permutations(range(3)) if order == "random" else [ORDERS[order]]
    return np.mean([law_of_order(np.exp(WRONG), list(o), start) for o in orders], axis=0)


def all_orders_but_one() -> list[np.ndarray]:
    """Laws of five orders of six."""
    orders = itertools.permutations(range(3))
    each = np.array([law_of_order(np.exp(WRONG), list(o), free(3)) for o in orders])
    return [np.delete(each, i, axis=0).mean(0) for i in range(len(each))]


ONE_AT_A_TIME = {
    "autoregressive": Case(
        "autoregressive",
        left_law,
        lambda steps: {},
        nfe=lambda steps, start: np.eye(4)[3],
        apply=visible_network(np.float32(EXACT[3]), ahead=1),
    ),
    "first_hitting": Case(
        "first_hitting",
        lambda steps, start: laws.given(JOINT[3], start),
        always(EXACT[3]),
        unlike=lambda: [masking(3)(16, free(3))],
        nfe=each_position,
    ),
    "first_hitting, wrong network": Case(
        "first_hitting",
        lambda steps, start: order_law("random", start),
        always(WRONG),
        unlike=all_orders_but_one,
        nfe=each_position,
    ),
} | {
    f"ordered, {order}": Case(
        "ordered",
        lambda steps, start, order=order: order_law(order, start),
        always(WRONG),
        unlike=lambda order=order: [
            order_law(other, free(3)) for other in {*ORDERS, "random"} - {order}
        ],
        nfe=each_position,
        options=(("order", order),),
    )
    for order in ("2,0,1", "random")
}

DISPUTED = wrong_table(VOCAB, 3, seed=29)  # the three rules disagree on it
# the same, but some of its answers are certain of their best token
HALF_CERTAIN = np.where(
    (np.random.default_rng(1).random(DISPUTED.shape[:2]) < 0.4)[..., None],
    np.where(DISPUTED.max(-1, keepdims=True) == DISPUTED, 0, -1e9),
    DISPUTED,
)


def adaptive(name: str) -> Case:
    """A row of a rule that reveals in equal parts."""
    p = np.exp(DISPUTED)
    others = {"confidence", "margin", "entropy"} - {name}
    return Case(
        name,
        lambda steps, start: adaptive_law(name, p, start, steps)[0],
        always(DISPUTED),
        steps=(1, 2, 5, 3),
        unlike=lambda: [adaptive_law(other, p, free(3), 3)[0] for other in others],
        nfe=lambda steps, start: adaptive_law(name, p, start, steps)[1],
    )


def entropy_bound(log_p: np.ndarray, gamma: float) -> Case:
    """A row of the rule that reveals up to a bound."""
    p = np.exp(log_p)
    return Case(
        "entropy",
        lambda steps, start: adaptive_law("entropy", p, start, gamma=gamma)[0],
        always(log_p),
        nfe=lambda steps, start: adaptive_law("entropy", p, start, gamma=gamma)[1],
        options=(("gamma", gamma),),
    )


ADAPTIVE = {
    "confidence": adaptive("confidence"),
    "margin": adaptive("margin"),
    "entropy, gamma = 0.8": entropy_bound(DISPUTED, 0.8),
    "entropy, no bound": entropy_bound(DISPUTED, np.inf),
    "entropy, gamma = 0, half certain": entropy_bound(HALF_CERTAIN, 0.0),
}

P_UNIFORM = 0.4


def masking_matrix(t: float) -> np.ndarray:
    """q(x_t | x_0) of LOG_LINEAR noise, the mask last: float64[V + 1, V + 1]."""
    tau = (1 - EPS) * t
    to_mask = np.zeros((VOCAB + 1, VOCAB + 1))
    to_mask[:, VOCAB] = 1
    return (1 - tau) * np.eye(VOCAB + 1) + tau * to_mask


@dataclass(frozen=True)
class Noise:
    """Noise of two positions as matrices.

    Attributes:
      process: the process under test.
      matrix_at: t -> q(x_t | x_0), float64[S, S].
      prior: float64[S].
    """

    process: Process
    matrix_at: laws.Matrices
    prior: np.ndarray

    def clean_at(self, t: float, joint: np.ndarray = JOINT[2]) -> np.ndarray:
        """p(x0_i | the other position at t) in every state: float64[S^2, 2, V].

        With it each step is right for each position on its own. Under masking it is p(x0 | x_t).
        """
        if self.matrix_at is masking_matrix:
            return conditionals(joint, STATES[2])
        return leave_one_out(joint, self.matrix_at(t))

    def law(
        self, steps: int, start: Sequence[int], kappa: float = 1.0, joint: np.ndarray = JOINT[2]
    ) -> np.ndarray:
        """laws.reverse_law with the exact network."""
        clean_at = functools.partial(self.clean_at, joint=joint)
        return laws.reverse_law(self.matrix_at, clean_at, self.prior, steps, start, kappa)


def hybrid_at(t: float) -> np.ndarray:
    """q(x_t | x_0) of LOG_LINEAR hybrid noise."""
    return hybrid_matrix((1 - EPS) * t, VOCAB, P_UNIFORM)


NOISE = {
    "absorbing": Noise(MASKING, masking_matrix, np.eye(VOCAB + 1)[VOCAB]),
    "uniform": Noise(
        Uniform(LOG_LINEAR, VOCAB),
        lambda t: uniform_matrix((1 - EPS) * t, VOCAB),
        np.full(VOCAB, 1 / VOCAB),
    ),
    "hybrid": Noise(
        Hybrid(LOG_LINEAR, VOCAB, P_UNIFORM),
        hybrid_at,
        # as many masks as at t = 1, and the tokens uniform
        np.append(np.full(VOCAB, hybrid_at(1.0)[0, :VOCAB].mean()), hybrid_at(1.0)[0, VOCAB]),
    ),
}

REDRAWS = {
    f"ancestral, {name} noise": Case(
        "ancestral",
        NOISE[name].law,
        in_time(NOISE[name].clean_at),
        length=2,
        steps=(1, 4, 5),
        unlike=lambda: [JOINT[2].reshape(-1)],
        process=NOISE[name].process,
    )
    for name in ("uniform", "hybrid")
}

KAPPA = 0.2
PREDICTOR_CORRECTOR = {
    f"predictor_corrector, {name} noise": Case(
        "predictor_corrector",
        functools.partial(NOISE[name].law, kappa=KAPPA),
        in_time(NOISE[name].clean_at),
        length=2,
        steps=(5,),
        unlike=lambda name=name: [NOISE[name].law(5, free(2), k) for k in (1, 1 - KAPPA)],
        process=NOISE[name].process,
        traced={"kappa": KAPPA},
    )
    for name in ("absorbing", "uniform")
}


def remdm_law(strategy: str, eta: float) -> Law:
    """Masks are revealed as log-linear noise of EPS wants, and free tokens masked again."""
    p0 = conditionals(JOINT[3], STATES[3])
    eye = np.eye(VOCAB + 1)

    def move(s: float, t: float) -> np.ndarray:
        alpha_s, alpha_t = 1 - (1 - EPS) * s, 1 - (1 - EPS) * t
        largest = min(1, (1 - alpha_s) / alpha_t)
        sigma = min(eta, largest) if strategy == "cap" else eta * largest
        reveal = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
        assert 0 <= reveal <= 1
        from_token = (1 - sigma) * eye[STATES[3]] + sigma * eye[VOCAB]
        masked = (STATES[3] == VOCAB)[..., None]
        return np.where(masked, laws.reveals(reveal, p0, STATES[3]), from_token)

    def law(steps: int, start: Sequence[int]) -> np.ndarray:
        moves = (move(s, t) for s, t in laws.times(steps))
        return laws.chain_law(eye[VOCAB], moves, start, VOCAB)

    return law


def remasking(strategy: str, other: str) -> Case:
    """A row of ReMDM, with half of what the strategy allows."""
    return Case(
        "remdm",
        remdm_law(strategy, 0.5),
        always(EXACT[3]),
        steps=(8, 4),
        unlike=lambda: [masking(3)(4, free(3)), remdm_law(other, 0.5)(4, free(3))],
        options=(("strategy", strategy),),
        traced={"eta": 0.5},
    )


REMASKING = {
    "remdm, cap": remasking("cap", "rescale"),
    "remdm, rescale": remasking("rescale", "cap"),
    "remdm, cap, nothing masked again": dataclasses.replace(
        remasking("cap", "rescale"), law=masking(3), unlike=list, traced={"eta": 0.0}
    ),
}
CASES = (
    ABSORBING
    | VECTOR
    | BLOCKWISE
    | ONE_AT_A_TIME
    | ADAPTIVE
    | REDRAWS
    | PREDICTOR_CORRECTOR
    | REMASKING
    | SCORES
)
