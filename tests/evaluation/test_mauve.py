"""MAUVE equals closed forms, and what the code of its authors gives."""

import math

import numpy as np
import pytest

from ddm_jax.errors import UserError
from ddm_jax.evaluation.samples.mauve import frontier_area, mauve


def test_equal_histograms_have_area_one():
    p = np.array([0.2, 0.3, 0.5, 0.0])
    assert frontier_area(p, p) == pytest.approx(1)


@pytest.mark.parametrize("scaling", [1.0, 2.0, 5.0])
def test_histograms_apart_have_the_area_of_a_beta_integral(scaling):
    """KL(p || l p + (1 - l) q) = -log l: the curve ((1 - l)^c, l^c), area c B(c + 1, c)."""
    p, q = np.array([0.5, 0.5, 0, 0]), np.array([0, 0, 0.1, 0.9])
    area = scaling * math.gamma(scaling + 1) * math.gamma(scaling) / math.gamma(2 * scaling + 1)
    assert frontier_area(p, q, scaling, points=20_001) == pytest.approx(area, rel=1e-5)


def test_area_equals_an_integral_of_two_known_histograms():
    """Fine quadrature of the frontier, y dx, with KL written out."""
    p, q, c = np.array([0.7, 0.2, 0.1]), np.array([0.3, 0.3, 0.4]), 5.0
    levels = np.linspace(0, 1, 400_001)[:, None]
    r = levels * p + (1 - levels) * q
    y = np.exp(-c * (p * np.log(p / r)).sum(axis=1))
    x = np.exp(-c * (q * np.log(q / r)).sum(axis=1))
    # along l the curve runs from (1, y(0)) to (x(1), 1); straight lines lead on to (1, 0), (0, 1)
    area = ((y[1:] + y[:-1]) / 2 * (x[:-1] - x[1:])).sum() + x[-1] * (1 + y[-1]) / 2
    assert frontier_area(p, q, c, points=20_001) == pytest.approx(area, rel=1e-6)
    assert frontier_area(p, q, c) == pytest.approx(frontier_area(q, p, c))
    assert 0.2 < area < 0.95


@pytest.mark.parametrize(
    ("p", "q", "area"),
    [
        ([0.7, 0.2, 0.1], [0.3, 0.3, 0.4], 0.7044423904872453),
        (*np.random.default_rng(3).dirichlet(np.full(20, 0.5), 2), 0.34814296447036364),
    ],
)
def test_area_equals_that_of_the_authors(p, q, area):
    """mauve-text 0.4.0: its curve of 25 points and the area under it."""
    assert frontier_area(np.array(p), np.array(q)) == pytest.approx(area, rel=1e-9)


def clouds(shift, seed=0, n=400, d=12):
    rng = np.random.default_rng(seed)
    p, q = rng.normal(size=(2, n, d))
    q[:, 0] += shift
    return p, q


# compute_mauve of mauve-text 0.4.0 on the same clouds, with seeds 0, 1 and 2
AUTHORS = {
    0: (0.9684, 0.9584, 0.9192),
    1: (0.7621, 0.7072, 0.7265),
    2: (0.1944, 0.2504, 0.2661),
    4: (0.0229, 0.0237, 0.0203),
    8: (0.0053, 0.0052, 0.0052),
}


def test_mauve_of_two_clouds_is_near_that_of_the_authors():
    """The k-means differ, and so do theirs from seed to seed."""
    found = [mauve(*clouds(shift)) for shift in AUTHORS]
    for ours, theirs in zip(found, AUTHORS.values(), strict=True):
        assert 0.8 * min(theirs) < ours < 1.2 * max(theirs)
    assert found == sorted(found, reverse=True)


def test_few_texts_are_refused():
    p, q = clouds(0, n=19)
    with pytest.raises(UserError, match="20 or more texts of each kind, and there are 19"):
        mauve(p, q)
