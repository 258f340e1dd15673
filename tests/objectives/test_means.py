"""Every objective on networks small enough to enumerate (table.py): the means of what it draws."""

import numpy as np
import pytest

from ddm_jax.objectives import OBJECTIVES
from tests import masking
from tests.objectives.attained import ATTAINED, BY_MASKS, by_masks
from tests.objectives.table import CASES, ELSEWHERE, SURER, WRONG, between

FIRST = {case.objective: name for name, case in reversed(CASES.items())}


@pytest.fixture(
    scope="module",
    params=[pytest.param(x, marks=() if x in FIRST.values() else pytest.mark.slow) for x in CASES],
)
def name(request: pytest.FixtureRequest) -> str:
    """A row, whose tests follow each other: they share its draws. One of each objective is fast."""
    return request.param


def test_every_objective_has_a_case():
    assert {case.objective for case in CASES.values()} | set(ELSEWHERE) == set(OBJECTIVES)


def test_draws_have_the_enumerated_mean(name):
    """Loss, bound and metrics: 5 standard errors (wrong once in 10^6), which are below 4 %.

    Padding is not corrupted and does not count, or there would be no numbers. Some ways to draw
    are surer than others.
    """
    case, out, exact = CASES[name], CASES[name].drawn.out, CASES[name].exact()
    number = np.ravel_multi_index(case.x0, (3,) * len(case.x0))
    assert tuple(sorted(out.metrics)) == tuple(sorted(OBJECTIVES[case.objective].metrics))
    assert (out.bound is None) == (OBJECTIVES[case.objective].estimates is None)
    options = {o.name: o.default for o in OBJECTIVES[case.objective].options} | dict(case.options)
    # GIDD's bound has a term at t = 1 that its loss leaves out
    same = out.bound is not None and (case.gap is not None or name == "gidd, elbo")
    assert OBJECTIVES[case.objective].loss_is_bound(options) == same
    drawn = {"loss": out.loss, "bound": out.bound} | out.metrics
    for key in exact:
        mean, stderr = drawn[key].mean(dtype=float), drawn[key].std() / np.sqrt(case.count)
        want = np.broadcast_to(exact[key], 3 ** len(case.x0))[number]
        assert abs(mean - want) < 5 * stderr + 1e-5 * abs(want), key
        assert stderr < 0.04 * abs(want), key
    assert set(exact) >= set(out.metrics)
    if out.bound is not None and case.gap is None:
        assert "bound" in exact
    elif out.bound is not None:
        np.testing.assert_allclose(out.bound - out.loss, case.gap, atol=2e-4 * (case.gap != 0))
    if name in SURER:
        other, field, least = SURER[name]
        assert out.loss.std() < least * getattr(CASES[other].drawn.out, field).std()


def test_metrics_are_the_share_of_the_tokens_that_the_network_sees_changed(name):
    """And where it is told sigma_bar, that is of the noise that it sees.

    The share of changed tokens in ten groups of like sigma: 5 standard errors each.
    """
    case, (out, changed, sigma) = CASES[name], CASES[name].drawn
    if case.looped:
        return
    for key in {"masked", "noised"} & set(out.metrics):
        np.testing.assert_allclose(out.metrics[key], changed.mean(1), rtol=1e-6)
    if case.altered is None:
        return
    chance = case.altered(np.float64(sigma))
    for group in np.array_split(np.argsort(chance), 10):
        p, share = chance[group], changed[group].mean()
        assert abs(share - p.mean()) < 5 * np.sqrt((p * (1 - p)).mean() / changed[group].size)


@pytest.mark.parametrize("bound", ATTAINED)
def test_exact_denoiser_attains_the_nll_of_every_sequence(bound):
    """Less what x_1 still says of it, where that is not nothing."""
    got, want, rtol = ATTAINED[bound]()
    np.testing.assert_allclose(got, want, rtol=rtol)


@pytest.mark.parametrize("loss", BY_MASKS)
def test_losses_by_masks_are_the_cross_entropy_over_mask_ratios_for_any_denoiser(loss):
    """And so the same, but for the ratios above 1 - eps."""
    highest = 1 - BY_MASKS[loss][2]
    np.testing.assert_allclose(by_masks(loss, WRONG), between(0, highest), rtol=1e-9)
    assert masking.JOINT.reshape(-1) @ (between(0, 1) - masking.NLL) > 0.1  # it is wrong


def test_any_order_masks_every_count_equally_often():
    """k = 1..n from stratified u: each count within one of B / n."""
    case = CASES["radd_ao"]
    counts = np.bincount(case.drawn.changed.sum(1))
    assert counts[0] == 0
    assert (abs(counts[1:] - case.count / 4) <= 1).all()
