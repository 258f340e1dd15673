"""Discrete schedules against their closed forms and RDM's buffers."""

import numpy as np
import pytest

from ddm_jax.diffusion import discrete_schedules as discrete
from ddm_jax.diffusion.discrete_schedules import DISCRETE_SCHEDULES


def steps_of(alpha_bar: np.ndarray) -> np.ndarray:
    return alpha_bar[1:] / alpha_bar[:-1]


@pytest.mark.parametrize("name", DISCRETE_SCHEDULES)
@pytest.mark.parametrize("steps", [1, 7, 1000])
def test_alpha_bar_falls_from_one(name, steps):
    alpha_bar = DISCRETE_SCHEDULES[name](steps)
    assert alpha_bar.shape == (steps + 1,)
    assert alpha_bar.dtype == np.float64
    assert alpha_bar[0] == 1
    assert np.all(np.diff(alpha_bar) < 0)
    assert alpha_bar[-1] >= 0


def test_mutual_information_is_beta_one_over_the_steps_left():
    t = np.arange(1, 51)
    np.testing.assert_allclose(
        1 - steps_of(discrete.d3pm_mutual_information(50)), 1 / (50 - t + 1), rtol=1e-12
    )


def test_d3pm_linear_has_the_given_ends():
    beta = 1 - steps_of(discrete.d3pm_linear(1000, first=1e-4, last=0.02))
    np.testing.assert_allclose(beta[[0, -1]], [1e-4, 0.02], rtol=1e-9)
    np.testing.assert_allclose(np.diff(beta), np.diff(beta)[0], rtol=1e-6)


def test_d3pm_cosine_is_a_plain_cosine_until_its_clipped_last_step():
    t = np.arange(21) / 20
    f = np.cos((t + 0.008) / 1.008 * np.pi / 2)
    alpha_bar = discrete.d3pm_cosine(20)
    np.testing.assert_allclose(alpha_bar[:-1], (f / f[0])[:-1], rtol=1e-12)
    np.testing.assert_allclose(alpha_bar[-1] / alpha_bar[-2], 0.001)


def test_rdm_schedules_are_their_curves_until_the_clipped_last_step():
    t = np.arange(31) / 30
    cosine = np.cos((t + 0.008) / 1.008 * np.pi / 2)
    curves = {
        "rdm_linear": 1 - t,
        "rdm_cosine": cosine**2,
        "rdm_cosine_old": cosine,
        "rdm_sqrt": 1 - np.sqrt(t + 1e-4),
    }
    for name, curve in curves.items():
        alpha_bar = DISCRETE_SCHEDULES[name](30)
        np.testing.assert_allclose(alpha_bar[:-1], (curve / curve[0])[:-1], rtol=1e-12)
        clip = 0.001**0.5 if name == "rdm_cosine_old" else 0.001
        np.testing.assert_allclose(alpha_bar[-1] / alpha_bar[-2], clip)


def test_oracle_rdm_schedules(oracle):
    arrays, _ = oracle("rdm", "schedules")
    seen = [name for name in arrays if name.endswith("_alphas")]
    assert seen
    for name in seen:
        prefix, schedule = name.removesuffix("_alphas").split("_", 1)
        alpha_bar = DISCRETE_SCHEDULES[f"rdm_{schedule}"](int(prefix.removeprefix("T")))
        np.testing.assert_allclose(steps_of(alpha_bar), arrays[name], rtol=1e-6)
        buffers = {
            "log_cumprod_alpha": np.log(alpha_bar[1:]),
            "log_1_min_cumprod_alpha": np.log(1 - alpha_bar[1:] + 1e-9),
        }
        for buffer, ours in buffers.items():
            expected = arrays[f"{prefix}_{schedule}_{buffer}"]
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)
