"""Rows of the table of samplers that step by scores: SEDD's rules, with true and wrong scores."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.schedules import SCHEDULES, Schedule
from ddm_jax.diffusion.uniform import Uniform
from tests.samplers.cases import JOINT, LOG_LINEAR, MOST, VOCAB, Case
from tests.scores import Chain

PROCESS = {"absorbing": Absorbing, "uniform": Uniform}
# of log-linear noise the Euler steps under masking are those of `ancestral`
POLYNOMIAL = SCHEDULES["polynomial"].make(k=2.0)


def square(p: np.ndarray) -> np.ndarray:
    """Temperature 0.5."""
    return p**2 / np.maximum((p**2).sum(-1, keepdims=True), 1e-300)


def best(p: np.ndarray) -> np.ndarray:
    """Only the best token is left."""
    return p == p.max(-1, keepdims=True)


def stepped(
    sampler: str,
    kind: str,
    schedule: Schedule,
    steps: tuple[int, ...],
    sharpen: Any = None,
    scale_by_sigma: bool = True,
    wrong: float = 0.0,
    **row: Any,
) -> Case:
    """A row. sharpen: what `spec` does to the law of a jump. wrong: how far scores are off."""
    rule = sampler.removesuffix("_x0")

    @functools.cache
    def chain(steps: int, wrong: float = wrong) -> Chain:
        return Chain(JOINT[3], kind, schedule, steps, wrong)

    def law(steps: int, start: Sequence[int]) -> np.ndarray:
        return chain(steps).law(rule, start, sharpen)

    def params(steps: int) -> dict[str, jax.Array]:
        return chain(steps).says(scale_by_sigma, MOST)

    def unlike() -> list[np.ndarray]:
        """The law without what is special to the row; or the joint one, and of other chains."""
        last = steps[-1]
        if sharpen or wrong:
            return [chain(last, 0.0).law(rule)]
        others = [JOINT[3].reshape(-1), chain(last + 1).law(rule)]
        return others + ([chain(last).law("analytic")] if rule == "euler" else [])

    options = () if scale_by_sigma else (("scale_by_sigma", False),)
    process = PROCESS[kind](schedule, VOCAB)
    row = {"unlike": unlike, "steps": steps, "process": process, "options": options} | row
    return Case(sampler, law, params, **row)


FILTERS = {
    "temperature 0.5": ({"temperature": 0.5}, square),
    "temperature 0": ({"temperature": 0.0}, best),
    "top_k 1": ({"top_k": 1}, best),
    "top_p 0.3": ({"top_p": 0.3}, best),  # the best of 3 has 1/3 or more
}


def of_kind(kind: str) -> dict[str, Case]:
    """The rows of a kind of noise."""
    rows = {
        "analytic": stepped("analytic", kind, LOG_LINEAR, (1, 3)),
        # its scores are cut off where they are impossible, and sum to what they like: the law is
        # not that of `ancestral` with normalised ones
        "analytic, wrong scores": stepped("analytic", kind, LOG_LINEAR, (4,), wrong=1.0),
        "euler": stepped("euler", kind, POLYNOMIAL, (2, 4)),
        "euler, wrong scores": stepped("euler", kind, POLYNOMIAL, (4,), wrong=1.0),
    }
    for name, (spec, sharpen) in FILTERS.items():
        rows[f"analytic, {name}"] = stepped("analytic", kind, LOG_LINEAR, (3,), sharpen, spec=spec)
    rows["euler, temperature 0.5"] = stepped(
        "euler", kind, POLYNOMIAL, (3,), square, spec={"temperature": 0.5}
    )
    return {f"{name}, {kind} noise": row for name, row in rows.items()}


SCORES = (
    of_kind("absorbing")
    | of_kind("uniform")
    | {
        "analytic, plain log scores": stepped(
            "analytic", "absorbing", LOG_LINEAR, (4,), scale_by_sigma=False, wrong=1.0
        ),
        # at alpha(1) = 2e-9 scores are as close to 1; alpha(0), 0.74 here, is 1 at the last step
        "analytic, geometric noise": stepped(
            "analytic", "uniform", SCHEDULES["geometric"].make(sigma_min=0.3), (3,)
        ),
        # p(x0 | x_t) is the true score but for a factor, which the network need not say
        "euler_x0": stepped("euler_x0", "absorbing", POLYNOMIAL, (4,)),
    }
)
