"""Continuous noise schedules: alpha(t), the probability that a token is still clean at time t.

Time runs from 0 (clean) to 1 (noise). A schedule is made either from a curve for alpha (RADD, MD4,
MDLM) or from one for the total noise sigma_bar = -log alpha (SEDD, MDLM). Both are written so that
float32 loses nothing: alpha and 1 - alpha each have their own formula, and neither is a difference
of the other.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddm_jax.config_fields import Option
from ddm_jax.errors import UserError

Curve = Callable[[ArrayLike], jax.Array]


class NoiseSchedule(Protocol):
    """What processes ask of a noise schedule, continuous (Schedule) or in T steps (StepSchedule).

    All are elementwise; s <= t are times in [0, 1] of any shapes that broadcast.
    """

    def alpha(self, t: ArrayLike, /) -> jax.Array:
        """The probability that a token is still clean."""
        ...

    def one_minus_alpha(self, t: ArrayLike, /) -> jax.Array:
        """Its complement, accurate where alpha is close to 1."""
        ...

    def drop(self, s: ArrayLike, t: ArrayLike) -> jax.Array:
        """alpha(s) - alpha(t)."""
        ...

    def condition(self, t: ArrayLike) -> jax.Array:
        """The number that the network receives as its time input."""
        ...


@dataclass(frozen=True)
class Schedule:
    """A continuous noise schedule; equal and hashed by name and parameters.

    Every function is elementwise over t[...] in [0, 1] and works in the dtype of t. Against float64
    at the same t their relative error in float32 is below 1e-5 on [1e-4, 1] (a test checks it).

    Attributes:
      name: of its row in SCHEDULES.
      parameters: its options, (name, value) each.
      alpha: probability that a token is still clean.
      one_minus_alpha: its complement, accurate where alpha is close to 1.
      sigma_bar: total noise, -log alpha; infinite where alpha = 0, which is at t = 1 with eps = 0
        only.
      rate: sigma(t) = d sigma_bar / dt, not negative; infinite where sigma_bar is.
      weight: -alpha'(t) / (1 - alpha(t)) = rate / expm1(sigma_bar), the factor of the cross entropy
        at masked positions (t-DCE in RADD, the continuous-time bound of MDLM and MD4). It diverges
        at t = 0 where alpha(0) = 1, and so needs t > 0.
      time: the inverse, sigma_bar[...] -> t[...]. Its absolute error is that of sigma_bar over
        rate: 1e-6 in float32, but 1e-5 where alpha is flat at t = 1 (cosine, mdlm_cosine_squared).
    """

    name: str
    parameters: tuple[tuple[str, float], ...]
    alpha: Curve = field(compare=False, repr=False)
    one_minus_alpha: Curve = field(compare=False, repr=False)
    sigma_bar: Curve = field(compare=False, repr=False)
    rate: Curve = field(compare=False, repr=False)
    weight: Curve = field(compare=False, repr=False)
    time: Curve = field(compare=False, repr=False)

    def drop(self, s: ArrayLike, t: ArrayLike) -> jax.Array:
        """alpha(s) - alpha(t) for s <= t that broadcast, to the rounding of s and t themselves."""
        # of the two equal differences, the one between the smaller numbers rounds less
        m_s, m_t = self.one_minus_alpha(s), self.one_minus_alpha(t)
        return jnp.where(m_t < 0.5, m_t - m_s, self.alpha(s) - self.alpha(t))

    def condition(self, t: ArrayLike) -> jax.Array:
        """The network's time input in continuous time: sigma_bar(t), float[...]."""
        return self.sigma_bar(t)


def grid(schedule: Schedule, steps: int) -> np.ndarray:
    """alpha at t = i / steps, i = 0..steps: numpy float64[steps + 1].

    Computed in float64 whatever jax is set to, and also under jit. For objectives and samplers of T
    steps, which take differences of neighbours and then round once.
    """
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return np.asarray(schedule.alpha(jnp.arange(steps + 1, dtype=jnp.float64) / steps))


class _Shape(NamedTuple):
    """A curve c(t) that falls from c(0) = 1 to c(1) = 0.

    Each function is accurate where its value is small.

    Attributes:
      clean: c(t).
      noisy: 1 - c(t).
      slope: -c'(t).
      time: the inverse, (c, 1 - c) -> t.
    """

    clean: Callable[[jax.Array], jax.Array]
    noisy: Callable[[jax.Array], jax.Array]
    slope: Callable[[jax.Array], jax.Array]
    time: Callable[[jax.Array, jax.Array], jax.Array]


def _sin(t: jax.Array) -> jax.Array:
    return jnp.sin(jnp.pi / 2 * t)


def _cos(t: jax.Array) -> jax.Array:
    # 1 - t is exact close to t = 1, where cos(pi t / 2) would amplify the rounding of pi t / 2
    return _sin(1 - t)


def _angle(sin: jax.Array, cos: jax.Array) -> jax.Array:
    """The t in [0, 1] with these sin(pi t / 2) and cos(pi t / 2); accurate at both ends."""
    return 2 / jnp.pi * jnp.arctan2(sin, cos)


_LINE = _Shape(clean=lambda t: 1 - t, noisy=lambda t: t, slope=jnp.ones_like, time=lambda c, d: d)

# c = 1 - sin(pi t / 2): MD4's cosine, 1 - cos(pi/2 (1 - t))
_ONE_MINUS_SIN = _Shape(
    clean=lambda t: 2 * _sin((1 - t) / 2) ** 2,
    noisy=_sin,
    slope=lambda t: jnp.pi / 2 * _cos(t),
    time=lambda c, d: _angle(sin=d, cos=jnp.sqrt(c * (1 + d))),
)

_COS = _Shape(
    clean=_cos,
    noisy=lambda t: 2 * _sin(t / 2) ** 2,
    slope=lambda t: jnp.pi / 2 * _sin(t),
    time=lambda c, d: _angle(sin=jnp.sqrt(d * (1 + c)), cos=c),
)

_COS_SQUARED = _Shape(
    clean=lambda t: _cos(t) ** 2,
    noisy=lambda t: _sin(t) ** 2,
    slope=lambda t: jnp.pi * _sin(t) * _cos(t),
    time=lambda c, d: _angle(sin=jnp.sqrt(d), cos=jnp.sqrt(c)),
)


def _power(k: float) -> _Shape:
    return _Shape(
        clean=lambda t: -jnp.expm1(k * jnp.log(t)),
        noisy=lambda t: t**k,
        slope=lambda t: k * t ** (k - 1),
        time=lambda c, d: d ** (1 / k),
    )


def _squeezed(name: str, shape: _Shape, floor: float, gap: float, **parameters: float) -> Schedule:
    """alpha(t) = floor + (1 - floor - gap) c(t): from 1 - gap at t = 0 down to floor at t = 1."""
    span = 1 - floor - gap

    def alpha(t: ArrayLike) -> jax.Array:
        return floor + span * shape.clean(jnp.asarray(t))

    def one_minus_alpha(t: ArrayLike) -> jax.Array:
        return gap + span * shape.noisy(jnp.asarray(t))

    def slope(t: ArrayLike) -> jax.Array:
        return span * shape.slope(jnp.asarray(t))

    def sigma_bar(t: ArrayLike) -> jax.Array:
        m = one_minus_alpha(t)
        # the minimum keeps log1p(-1), and its gradient, out of the branch that is not taken
        return jnp.where(m < 0.5, -jnp.log1p(-jnp.minimum(m, 0.5)), -jnp.log(alpha(t)))

    def time(sigma_bar: ArrayLike) -> jax.Array:
        # rounding may step over the ends of the shape, whose square roots would then be nan
        c = jnp.clip((jnp.exp(jnp.negative(sigma_bar)) - floor) / span, 0, 1)
        d = jnp.clip((-jnp.expm1(jnp.negative(sigma_bar)) - gap) / span, 0, 1)
        return shape.time(c, d)

    return Schedule(
        name=name,
        parameters=tuple(parameters.items()),
        alpha=alpha,
        one_minus_alpha=one_minus_alpha,
        sigma_bar=sigma_bar,
        rate=lambda t: slope(t) / alpha(t),
        weight=lambda t: slope(t) / one_minus_alpha(t),
        time=time,
    )


def _from_total_noise(
    name: str, sigma_bar: Curve, rate: Curve, time: Curve, **parameters: float
) -> Schedule:
    """A schedule given by its total noise sigma_bar(t), its derivative and its inverse."""
    return Schedule(
        name=name,
        parameters=tuple(parameters.items()),
        alpha=lambda t: jnp.exp(-sigma_bar(t)),
        one_minus_alpha=lambda t: -jnp.expm1(-sigma_bar(t)),
        sigma_bar=sigma_bar,
        rate=rate,
        weight=lambda t: rate(t) / jnp.expm1(sigma_bar(t)),
        time=time,
    )


def _check_eps(eps: float) -> None:
    if not 0 <= eps < 0.5:
        raise UserError(
            f"config.schedule.eps={eps} is out of range: give a number of at least 0 and below 0.5."
        )


def _check_sigmas(sigma_min: float, sigma_max: float, smallest: str) -> None:
    low_enough = sigma_min > 0 if smallest == "above 0" else sigma_min >= 0
    if not (low_enough and sigma_min < sigma_max < float("inf")):
        raise UserError(
            f"config.schedule.sigma_min={sigma_min} and config.schedule.sigma_max={sigma_max} do "
            f"not fit: give a sigma_min {smallest} and a finite sigma_max above it."
        )


def log_linear(eps: float = 1e-3) -> Schedule:
    """alpha = 1 - (1 - eps) t, so sigma_bar = -log1p(-(1 - eps) t) (SEDD, RADD, MDLM).

    Raises UserError unless 0 <= eps < 0.5.
    """
    _check_eps(eps)
    return _squeezed("log_linear", _LINE, floor=eps, gap=0.0, eps=eps)


def linear(eps: float = 1e-4) -> Schedule:
    """alpha = (1 - 2 eps)(1 - t) + eps (MD4, with its eps squeeze).

    Raises UserError unless 0 <= eps < 0.5.
    """
    _check_eps(eps)
    return _squeezed("linear", _LINE, floor=eps, gap=eps, eps=eps)


def cosine(eps: float = 1e-4) -> Schedule:
    """alpha = (1 - 2 eps)(1 - cos(pi/2 (1 - t))) + eps (MD4).

    Raises UserError unless 0 <= eps < 0.5.
    """
    _check_eps(eps)
    return _squeezed("cosine", _ONE_MINUS_SIN, floor=eps, gap=eps, eps=eps)


def polynomial(k: float = 2.0, eps: float = 1e-4) -> Schedule:
    """alpha = (1 - 2 eps)(1 - t^k) + eps (MD4).

    Raises UserError unless 0 <= eps < 0.5 and k > 0.
    """
    _check_eps(eps)
    if not k > 0:
        raise UserError(f"config.schedule.k={k} is out of range: give an exponent above 0.")
    return _squeezed("polynomial", _power(k), floor=eps, gap=eps, k=k, eps=eps)


def mdlm_cosine(eps: float = 1e-3) -> Schedule:
    """alpha = eps + (1 - eps) cos(pi t / 2) (MDLM, its noise schedules).

    Raises UserError unless 0 <= eps < 0.5.
    """
    _check_eps(eps)
    return _squeezed("mdlm_cosine", _COS, floor=eps, gap=0.0, eps=eps)


def mdlm_cosine_squared(eps: float = 1e-3) -> Schedule:
    """alpha = eps + (1 - eps) cos(pi t / 2)^2 (MDLM, its noise schedules).

    Raises UserError unless 0 <= eps < 0.5.
    """
    _check_eps(eps)
    return _squeezed("mdlm_cosine_squared", _COS_SQUARED, floor=eps, gap=0.0, eps=eps)


def mdlm_linear(sigma_min: float = 0.0, sigma_max: float = 10.0) -> Schedule:
    """sigma_bar = sigma_min + t (sigma_max - sigma_min) (MDLM, its noise schedules).

    Raises UserError unless 0 <= sigma_min < sigma_max < inf.
    """
    _check_sigmas(sigma_min, sigma_max, "at least 0")
    sigma = sigma_max - sigma_min
    return _from_total_noise(
        "mdlm_linear",
        sigma_bar=lambda t: sigma_min + jnp.asarray(t) * sigma,
        rate=lambda t: sigma * jnp.ones_like(t),
        time=lambda sigma_bar: (jnp.asarray(sigma_bar) - sigma_min) / sigma,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
    )


def geometric(sigma_min: float = 1e-4, sigma_max: float = 20.0) -> Schedule:
    """sigma_bar = sigma_min^(1-t) sigma_max^t (SEDD; alpha(0) = exp(-sigma_min)).

    Raises UserError unless 0 < sigma_min < sigma_max < inf.
    """
    _check_sigmas(sigma_min, sigma_max, "above 0")
    log_ratio = float(np.log(sigma_max) - np.log(sigma_min))

    def sigma_bar(t: ArrayLike) -> jax.Array:
        # counted from t = 1, where sigma_bar is large and its error is amplified in exp(-sigma_bar)
        return sigma_max * jnp.exp(-log_ratio * (1 - jnp.asarray(t)))

    return _from_total_noise(
        "geometric",
        sigma_bar=sigma_bar,
        rate=lambda t: log_ratio * sigma_bar(t),
        time=lambda sigma_bar: jnp.log(jnp.asarray(sigma_bar) / sigma_min) / log_ratio,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
    )


@dataclass(frozen=True)
class ScheduleEntry:
    """One row of the table of continuous schedules.

    Attributes:
      make: `make(**options)` builds the schedule.
      options: the fields of config.schedule that apply, with their defaults.
    """

    make: Callable[..., Schedule]
    options: tuple[Option, ...]


SCHEDULES = {
    "log_linear": ScheduleEntry(log_linear, (Option("eps", 1e-3),)),
    "linear": ScheduleEntry(linear, (Option("eps", 1e-4),)),
    "cosine": ScheduleEntry(cosine, (Option("eps", 1e-4),)),
    "polynomial": ScheduleEntry(polynomial, (Option("k", 2.0), Option("eps", 1e-4))),
    "mdlm_cosine": ScheduleEntry(mdlm_cosine, (Option("eps", 1e-3),)),
    "mdlm_cosine_squared": ScheduleEntry(mdlm_cosine_squared, (Option("eps", 1e-3),)),
    "mdlm_linear": ScheduleEntry(
        mdlm_linear, (Option("sigma_min", 0.0), Option("sigma_max", 10.0))
    ),
    "geometric": ScheduleEntry(geometric, (Option("sigma_min", 1e-4), Option("sigma_max", 20.0))),
}
