"""Schedules against closed forms, against their own derivatives, and float32 against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddm_jax.diffusion.schedules import SCHEDULES, grid, log_linear
from ddm_jax.errors import UserError

FUNCTIONS = ("alpha", "one_minus_alpha", "sigma_bar", "rate", "weight")

# design section 2, in float64
FORMULAS = {
    "log_linear": lambda t: 1 - (1 - 1e-3) * t,
    "linear": lambda t: (1 - 2e-4) * (1 - t) + 1e-4,
    "cosine": lambda t: (1 - 2e-4) * (1 - np.cos(np.pi / 2 * (1 - t))) + 1e-4,
    "polynomial": lambda t: (1 - 2e-4) * (1 - t**2) + 1e-4,
    "mdlm_cosine": lambda t: 1e-3 + (1 - 1e-3) * np.cos(np.pi / 2 * t),
    "mdlm_cosine_squared": lambda t: 1e-3 + (1 - 1e-3) * np.cos(np.pi / 2 * t) ** 2,
    "mdlm_linear": lambda t: np.exp(-10 * t),
    "geometric": lambda t: np.exp(-(1e-4 ** (1 - t)) * 20.0**t),
}

# dense at both ends, where float32 has the most to lose
TIMES = np.concatenate(
    [np.geomspace(1e-4, 1, 500), 1 - np.geomspace(1e-7, 0.9, 500), np.linspace(1e-4, 1, 501)]
).astype(np.float32)

SMOOTH, WHOLE = np.linspace(1e-3, 0.999, 97), np.linspace(0, 1, 1001)
# multiples of 1/1024: s, t and t - s are exact in float32
GRID = np.arange(1, 1025) / 1024
ALL = np.concatenate([TIMES, SMOOTH, WHOLE, GRID])
PARTS = dict(
    zip(
        ("TIMES", "SMOOTH", "WHOLE", "GRID"),
        np.split(np.arange(len(ALL)), np.cumsum([len(TIMES), len(SMOOTH), len(WHOLE)])),
        strict=True,
    )
)

each_schedule = pytest.mark.parametrize("name", SCHEDULES)


def in_float64(function, *arguments) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(function(*(np.asarray(a, np.float64) for a in arguments)))


@functools.cache
def everything(name: str, dtype: str) -> dict[str, np.ndarray]:
    """The functions of a schedule, and what is to equal them, at ALL; by one program."""
    schedule = SCHEDULES[name].make()

    @jax.jit
    def run(t):
        s = t - jnp.asarray(1 / 1024, t.dtype)
        values = {function: getattr(schedule, function)(t) for function in FUNCTIONS}
        return values | {
            "time": schedule.time(values["sigma_bar"]),
            "drop": schedule.drop(s, t),
            "fall": schedule.alpha(s) - schedule.alpha(t),
            "slope of sigma_bar": jax.vmap(jax.grad(schedule.sigma_bar))(t),
            "slope of alpha": jax.vmap(jax.grad(schedule.alpha))(t),
        }

    with jax.enable_x64(dtype == "float64"):
        return jax.device_get(run(ALL.astype(dtype)))


def at(name: str, part: str, dtype: str = "float64") -> dict[str, np.ndarray]:
    """The same at one of the four arrays of times."""
    return {key: value[PARTS[part]] for key, value in everything(name, dtype).items()}


def test_every_schedule_has_a_formula_here():
    assert set(FORMULAS) == set(SCHEDULES)


@each_schedule
def test_alpha_is_the_formula_of_the_design(name):
    np.testing.assert_allclose(at(name, "WHOLE")["alpha"], FORMULAS[name](WHOLE), rtol=1e-9)


@each_schedule
@pytest.mark.parametrize("function", FUNCTIONS)
def test_float32_is_as_accurate_as_float64_to_1e_5(name, function):
    ours = at(name, "TIMES", "float32")[function]
    assert ours.dtype == jnp.float32
    np.testing.assert_allclose(ours, at(name, "TIMES")[function], rtol=1e-5)


@each_schedule
def test_rate_is_the_derivative_of_sigma_bar(name):
    found = at(name, "SMOOTH")
    np.testing.assert_allclose(found["rate"], found["slope of sigma_bar"], rtol=1e-9)


@each_schedule
def test_weight_is_the_hazard_of_unmasking(name):
    found = at(name, "SMOOTH")
    hazard = -found["slope of alpha"] / (1 - found["alpha"])
    np.testing.assert_allclose(found["weight"], hazard, rtol=1e-9)
    of_rate = found["rate"] / np.expm1(found["sigma_bar"])
    np.testing.assert_allclose(found["weight"], of_rate, rtol=1e-9)


@each_schedule
def test_alpha_falls_from_one_to_zero(name):
    found = at(name, "WHOLE")
    alpha = found["alpha"]
    assert np.all(np.diff(alpha) < 0)
    assert 1 - 1.001e-4 <= alpha[0] <= 1
    assert 0 <= alpha[-1] <= 1e-3
    np.testing.assert_allclose(found["one_minus_alpha"], 1 - alpha, atol=1e-15)
    np.testing.assert_allclose(found["sigma_bar"], -np.log(alpha), rtol=1e-9, atol=1e-15)


@each_schedule
def test_time_inverts_sigma_bar(name):
    np.testing.assert_allclose(at(name, "WHOLE")["time"], WHOLE, atol=1e-9)


def test_mdlm_linear_starts_at_sigma_min(float64):
    schedule = SCHEDULES["mdlm_linear"].make(0.5, 7.0)
    np.testing.assert_allclose(schedule.sigma_bar(jnp.array([0.0, 0.5, 1.0])), [0.5, 3.75, 7.0])
    np.testing.assert_allclose(schedule.time(jnp.array([0.5, 3.75, 7.0])), [0.0, 0.5, 1.0])


@each_schedule
def test_time_inverts_sigma_bar_in_float32(name):
    np.testing.assert_allclose(at(name, "TIMES", "float32")["time"], TIMES, atol=1e-5)


@each_schedule
def test_drop_is_accurate_in_float32(name):
    exact = at(name, "GRID")
    np.testing.assert_allclose(exact["drop"], exact["fall"])
    # one rounding of the smaller of alpha and 1 - alpha, both at most 1/2
    ours = at(name, "GRID", "float32")["drop"]
    np.testing.assert_allclose(ours, exact["drop"], rtol=1e-6, atol=2e-7)


@each_schedule
def test_schedules_are_equal_by_name_and_parameters(name):
    make = SCHEDULES[name].make
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make().name == name
    first, value = make().parameters[-1]
    assert make(**{first: value / 2}) != make()


def test_grid_is_alpha_in_float64_also_under_jit():
    expected = FORMULAS["log_linear"](np.arange(6) / 5)
    table = grid(log_linear(), 5)
    assert table.dtype == np.float64
    np.testing.assert_allclose(table, expected, rtol=1e-14)
    traced = jax.jit(lambda x: x + grid(log_linear(), 5).astype(np.float32))(jnp.zeros(6))
    np.testing.assert_array_equal(traced, expected.astype(np.float32))


def test_eps_zero_masks_everything_at_the_end():
    schedule = log_linear(eps=0.0)
    assert schedule.alpha(1.0) == 0
    assert schedule.weight(1.0) == 1
    assert jnp.isposinf(schedule.sigma_bar(1.0))


@pytest.mark.parametrize(
    ("name", "parameters", "field"),
    [
        ("log_linear", {"eps": 0.5}, "config.schedule.eps=0.5"),
        ("cosine", {"eps": -1.0}, "config.schedule.eps=-1.0"),
        ("polynomial", {"k": 0.0}, "config.schedule.k=0.0"),
        ("mdlm_linear", {"sigma_min": 2.0, "sigma_max": 1.0}, "config.schedule.sigma_max=1.0"),
        ("geometric", {"sigma_min": 0.0}, "config.schedule.sigma_min=0.0"),
    ],
)
def test_a_bad_parameter_is_named(name, parameters, field):
    with pytest.raises(UserError, match=field):
        SCHEDULES[name].make(**parameters)


def radd_sedd_schedules() -> dict:
    # the references keep sigma_min and sigma_max in float32
    def geometric(sigma_min, sigma_max):
        return SCHEDULES["geometric"].make(
            float(np.float32(sigma_min)), float(np.float32(sigma_max))
        )

    return {
        "loglinear": SCHEDULES["log_linear"].make(),
        "geometric": geometric(1e-4, 20),
        "geometric_default": geometric(1e-3, 1),
    }


def assert_matches(schedule, arrays: dict, prefix: str, skip: tuple[str, ...] = ()) -> None:
    """sigma and dsigma at t, in float64 to 1e-6 and in float32 to 1e-4."""
    functions = {"sigma": schedule.sigma_bar, "dsigma": schedule.rate}
    for suffix, function in functions.items():
        expected = arrays[f"{prefix}_{suffix}__f64"]
        ours = in_float64(function, arrays["t__f64"])
        expected = np.broadcast_to(expected, ours.shape)
        # cos(pi/2) is not quite 0 there
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-12)
        if f"{prefix}_{suffix}" not in skip:
            expected = arrays[f"{prefix}_{suffix}"]
            ours = np.asarray(function(arrays["t"]))
            expected = np.broadcast_to(expected, ours.shape)
            np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reference", ["radd", "sedd"])
@pytest.mark.parametrize("name", radd_sedd_schedules())
def test_oracle_radd_and_sedd_noise(reference, name, oracle):
    arrays, _ = oracle(reference, "noise")
    assert_matches(radd_sedd_schedules()[name], arrays, name)


def mdlm_schedules(arrays: dict) -> dict:
    sigma_min, sigma_max = (float(x) for x in arrays["linear_sigma_minmax__f64"])
    return {
        "loglinear": SCHEDULES["log_linear"].make(),
        "cosine": SCHEDULES["mdlm_cosine"].make(),
        "cosinesqr": SCHEDULES["mdlm_cosine_squared"].make(),
        "linear": SCHEDULES["mdlm_linear"].make(sigma_min, sigma_max),
        "geometric": radd_sedd_schedules()["geometric"],
    }


@pytest.mark.parametrize("name", ["loglinear", "cosine", "cosinesqr", "linear", "geometric"])
def test_oracle_mdlm_noise(name, oracle):
    arrays, _ = oracle("mdlm", "noise")
    # the reference loses cos close to t = 1 in float32 (INDEX.md, list of inaccurate arrays)
    assert_matches(mdlm_schedules(arrays)[name], arrays, name, skip=("cosinesqr_dsigma",))


@pytest.mark.parametrize("name", ["loglinear", "linear"])
def test_oracle_mdlm_importance_times_come_from_our_inverse(name, oracle):
    """log(1 - alpha) runs evenly from its value at sigma_min to that at sigma_max."""
    arrays, _ = oracle("mdlm", "noise")
    f_0, f_T = np.log1p(-np.exp(-arrays[f"{name}_sigma_minmax__f64"]))
    t = arrays["t__f64"]
    sigma_bar = -np.log1p(-np.exp(t * f_T + (1 - t) * f_0))
    np.testing.assert_allclose(
        in_float64(mdlm_schedules(arrays)[name].time, sigma_bar),
        arrays[f"{name}_importance_t__f64"],
        rtol=1e-6,
        atol=1e-12,
    )
