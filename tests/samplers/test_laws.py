"""What every sampler draws, against the exactly enumerated law of its chain (table.py).

With N steps several positions may move at once, each without sight of the others: the law of most
chains is the joint distribution only as N grows. Chi-squares reject the right law once in 10^6.
"""

import functools
from collections.abc import Iterable

import numpy as np
import pytest

from ddm_jax.diffusion.schedules import SCHEDULES
from tests import laws
from tests.enumerable import random_joint
from tests.samplers.cases import JOINT, VOCAB, Case, free
from tests.samplers.score_cases import POLYNOMIAL
from tests.samplers.table import CASES, NOISE, masking, remdm_law
from tests.scores import Chain

COUNT = 40_000  # sequences of a batch
ONE_FIXED = {
    n: [[v if j == i else VOCAB for j in range(n)] for i in range(n) for v in range(VOCAB)]
    for n in (2, 3, 4)
}
STARTS = {
    2: [free(2), *ONE_FIXED[2]],
    3: [free(3), *ONE_FIXED[3], [2, VOCAB, 1]],
    4: [free(4), *ONE_FIXED[4][:4], [VOCAB, 1, VOCAB, 0], [2, VOCAB, VOCAB, 2]],
}


def start_of(length: int) -> np.ndarray:
    """The number in STARTS of each sequence of a batch that has all; the free ones come first."""
    return np.arange(COUNT) * len(STARTS[length]) // COUNT


def batch_of(starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(prompt, what is fixed). What the prompt says at free positions is to be ignored."""
    fixed = starts < VOCAB
    return np.where(fixed, starts, 1).astype(np.int32), fixed


@functools.cache
def drawn(name: str, steps: int, mixed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(tokens, nfe) of a batch without fixed positions; mixed: of one with all starts."""
    case = CASES[name]
    number = start_of(case.length) * mixed
    return case.draw(steps, *batch_of(np.array(STARTS[case.length])[number]), seed=int(mixed))


def assert_law(
    case: Case, sample: tuple[np.ndarray, np.ndarray], steps: int, start: list[int]
) -> None:
    """Tokens and numbers of evaluations have the law of the row."""
    tokens, nfe = sample
    statistic, limit = laws.chi_square(tokens, case.law(steps, start))
    assert statistic < limit, f"{steps} steps from {start}"
    if case.nfe:
        statistic, limit = laws.chi_square_of(nfe, case.nfe(steps, start))
        assert statistic < limit, f"evaluations in {steps} steps from {start}"


def rows(names: Iterable[str]) -> list:
    """Rows of the table as parameters; only a few are fast."""
    fast = ("ancestral", "autoregressive")
    return [pytest.param(x, marks=() if x in fast else pytest.mark.slow) for x in names]


@pytest.mark.parametrize("name", rows(CASES))
def test_samples_follow_the_law_of_the_chain(name):
    """For several numbers of steps, and not that of another chain."""
    case = CASES[name]
    for steps in case.steps:
        assert_law(case, drawn(name, steps), steps, free(case.length))
    tokens, _ = drawn(name, case.steps[-1])
    for law in case.unlike():
        statistic, limit = laws.chi_square(tokens, law)
        assert statistic > limit


@pytest.mark.parametrize("name", rows(CASES))
def test_fixed_positions_stay_and_the_rest_follows_given_them(name):
    case = CASES[name]
    tokens, nfe = drawn(name, case.steps[-1], mixed=True)
    for number, start in enumerate(STARTS[case.length]):
        own = start_of(case.length) == number
        assert_law(case, (tokens[own], nfe[own]), case.steps[-1], start)


def a_row_of_each_program() -> list[str]:
    """Rows that differ in what the network says have one program."""
    found = {}
    for name, case in CASES.items():
        found.setdefault((case.sampler, case.process, case.apply, case.options), name)
    return list(found.values())


@pytest.mark.parametrize("name", rows(a_row_of_each_program()))
def test_a_sequence_depends_on_its_own_key_prompt_and_number_only(name):
    """Whatever the other sequences of the batch are; test_table.py: and however many there are."""
    case, number = CASES[name], start_of(CASES[name].length)
    prompt, fixed = batch_of(np.array(STARTS[case.length])[number])
    tokens, _ = drawn(name, case.steps[-1], mixed=True)
    kept = np.arange(COUNT) % 500 == 0
    rng = np.random.default_rng(1)
    others = np.where(kept[:, None], prompt, rng.integers(0, VOCAB, prompt.shape, np.int32))
    fewer = np.where(kept[:, None], fixed, rng.random(fixed.shape) < 0.3)
    changed, _ = case.draw(case.steps[-1], others, fewer, seed=1)
    np.testing.assert_array_equal(changed[kept], tokens[kept])
    np.testing.assert_array_equal(changed[fewer], others[fewer])
    of_other_key, _ = drawn(name, case.steps[-1])
    assert (of_other_key != tokens)[number == 0].any()


@pytest.mark.slow
def test_cached_draws_the_samples_of_event_driven_from_the_same_key():
    """Of whose evaluations a batch needs at least as many as its slowest sequence."""
    steps = CASES["cached"].steps
    for arguments in (*((n,) for n in steps), (steps[-1], True)):
        (tokens, nfe), (same, of_batch) = (
            drawn(name, *arguments) for name in ("event_driven", "cached")
        )
        np.testing.assert_array_equal(tokens, same)
        assert nfe.max() <= of_batch[0] <= arguments[0]


MIXED = JOINT[2] / 2 + 1 / (2 * VOCAB**2)  # its rare sequences do not hide the rate
PAIR = random_joint(VOCAB, 2, seed=3)
CLEAN = {  # their x_1 is the prior to 1e-6
    "analytic": SCHEDULES["log_linear"].make(eps=1e-6),
    "euler": SCHEDULES["polynomial"].make(k=2.0, eps=1e-7),
}


def of_chain(rule: str, kind: str):
    return lambda steps: Chain(PAIR, kind, CLEAN[rule], steps).law(rule)


def of_noise(name: str, joint: np.ndarray, kappa: float = 1.0):
    return lambda steps: NOISE[name].law(steps, free(2), kappa, joint)


# the law after `steps` steps, the joint one, and how much closer twice the steps are
LIMITS = {
    "ancestral": (lambda steps: masking(3)(steps, free(3)), JOINT[3], 2),
    "ancestral, uniform noise": (of_noise("uniform", JOINT[2]), JOINT[2], 2),
    # whose redraws come as sqrt(t)
    "ancestral, hybrid noise": (of_noise("hybrid", JOINT[2]), JOINT[2], 2**0.5),
    # with an exact network each token that is masked again is one more chance to go wrong
    "remdm, cap 0.2": (lambda n: remdm_law("cap", 0.2)(n, free(3)), JOINT[3], 2**0.5),
    "remdm, rescale 0.5": (lambda n: remdm_law("rescale", 0.5)(n, free(3)), JOINT[3], 2**0.5),
    "remdm, cap 2 / steps": (lambda n: remdm_law("cap", 2 / n)(n, free(3)), JOINT[3], 2),
    **{
        f"predictor_corrector, {name} noise, kappa {kappa}": (
            of_noise(name, MIXED, kappa),
            MIXED,
            2 if kappa == 1 else 2**0.5,
        )
        for name in ("absorbing", "uniform")
        for kappa in (1, 0.5)
    },
    **{
        f"{rule}, {kind} noise": (of_chain(rule, kind), PAIR, 2)
        for rule in CLEAN
        for kind in ("absorbing", "uniform")
    },
}


@pytest.mark.parametrize("name", LIMITS)
def test_law_of_the_chain_tends_to_the_joint(name):
    """As one over the steps, or over their root."""
    law, joint, rate = LIMITS[name]
    far = [abs(law(steps) - joint.reshape(-1)).sum() / 2 for steps in (16, 64, 128)]
    assert far[0] > 1.5 * far[1]
    assert far[1] / far[2] == pytest.approx(rate, rel=0.1)


def test_laws_that_are_equal():
    """Of samplers that differ in name only, in any number of steps."""
    masked = masking(3)(5, free(3))
    for strategy in ("cap", "rescale"):
        np.testing.assert_allclose(remdm_law(strategy, 0.0)(5, free(3)), masked, atol=1e-12)
    pair = laws.absorbing_law(JOINT[2], 5, free(2))
    np.testing.assert_allclose(NOISE["absorbing"].law(5, free(2)), pair, atol=1e-12)
    for name in ("analytic, absorbing noise", "ancestral"):
        np.testing.assert_allclose(CASES[name].law(5, free(3)), masked, rtol=1e-6)
    for steps in (4, 12):
        law = CASES["blockwise, blocks of 1"].law(steps, free(4))
        np.testing.assert_allclose(law, JOINT[4].reshape(-1), rtol=1e-9)


@pytest.mark.parametrize("kind", ["absorbing", "uniform"])
def test_one_free_position_has_the_right_law_in_any_number_of_steps(kind):
    """Without error of several moves at once; with uniform noise only where no other is fixed."""
    single = np.array([0.2, 0.7, 0.1])
    for steps in (1, 4):
        law = Chain(single, kind, CLEAN["analytic"], steps).law("analytic")
        np.testing.assert_allclose(law, single, atol=3e-6)
    if kind == "absorbing":
        start = [2, VOCAB, 1]
        for chain in (
            Chain(JOINT[3], kind, POLYNOMIAL, 3).law("euler", start),
            masking(3)(1, start),
        ):
            np.testing.assert_allclose(chain, laws.given(JOINT[3], start), rtol=1e-6)
