"""A row of the table of samplers (table.py): a sampler, a network, the law of what they draw."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.diffusion.absorbing import Absorbing
from ddm_jax.diffusion.process import Process
from ddm_jax.diffusion.randomness import step_key
from ddm_jax.diffusion.schedules import SCHEDULES
from ddm_jax.models.readout import Readout
from ddm_jax.samplers import SAMPLERS, SampleSpec
from tests import laws
from tests.enumerable import all_sequences, random_joint
from tests.programs import RUNS_LONG

VOCAB, MOST, EPS = 3, 8, 1e-3
JOINT = {length: random_joint(VOCAB, length, seed=3) for length in (2, 3, 4)}
STATES = {length: all_sequences(VOCAB + 1, length) for length in (2, 3, 4)}
LOG_LINEAR = SCHEDULES["log_linear"].make(eps=EPS)
MASKING = Absorbing(LOG_LINEAR, VOCAB)
# whose programs take longer to compile for speed than they then save
FEW_DRAWS = ("blockwise", "autoregressive", "first_hitting", "ordered", "entropy")

Law = Callable[[int, Sequence[int]], np.ndarray]


def told(params: dict[str, jax.Array], tokens: jax.Array, sigma=None, read=None) -> Readout:
    """A network that looks its answer up.

    params: "says", float32[T, S^L, L, V], at each of the times "sigma", float32[T].
    """
    length = tokens.shape[1]
    size = round(params["says"].shape[1] ** (1 / length))
    step = 0 if sigma is None else jnp.argmin(abs(sigma[:, None] - params["sigma"]), axis=1)
    hidden = params["says"][step, (tokens * size ** np.arange(length)[::-1]).sum(axis=1)]
    readout = Readout(hidden, jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)
    return readout if read is None else readout.at(jnp.minimum(read, length - 1))


def always(log_p: np.ndarray) -> Callable[[int], dict[str, jax.Array]]:
    """The params of `told` for log p [S^L, L, V] at all times, for any number of steps."""
    return lambda steps: {"says": jnp.float32(log_p)[None], "sigma": jnp.zeros(1)}


def in_time(clean_at: Callable[[float], np.ndarray]) -> Callable[[int], dict[str, jax.Array]]:
    """The params of `told` for p [S^L, L, V] at the times of up to MOST steps."""

    def params(steps: int) -> dict[str, jax.Array]:
        t = np.resize(1 - np.arange(steps) / steps, MOST)
        says = np.log(np.maximum([clean_at(each) for each in t], 1e-30))
        return {"says": jnp.float32(says), "sigma": LOG_LINEAR.sigma_bar(jnp.float32(t))}

    return params


def each_step(steps: int, start: Sequence[int]) -> np.ndarray:
    """P(nfe) of a sampler that evaluates the network at every step."""
    return np.eye(steps + 1)[steps]


def each_position(steps: int, start: Sequence[int]) -> np.ndarray:
    """P(nfe) of a sampler that evaluates it for every free position."""
    return np.eye(len(start) + 1)[list(start).count(VOCAB)]


def each_hit_step(steps: int, start: Sequence[int]) -> np.ndarray:
    """P(nfe) of a sampler that evaluates it at every step at which something is revealed."""
    return laws.occupancy(steps, list(start).count(VOCAB))


@dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
      sampler: a key of SAMPLERS.
      law: (steps, start) -> p(x), float64[V^L]; start has the fixed tokens, and V elsewhere.
      params: steps -> the params of `apply`.
      length: L.
      steps: what to take; the last one is also taken with fixed positions.
      unlike: laws from which the samples of the last one must differ.
      nfe: (steps, start) -> P(nfe), float64[..], or None where it is tested elsewhere.
      process: of the sampler.
      apply: the network.
      options: of the sampler, (name, value) each; they cost a program of their own.
      traced: of the sampler, which may be traced.
      spec: fields of SampleSpec but for steps.
    """

    sampler: str
    law: Law
    params: Callable[[int], Any]
    length: int = 3
    steps: tuple[int, ...] = (4,)
    unlike: Callable[[], list[np.ndarray]] = list
    nfe: Law | None = each_step
    process: Process = MASKING
    apply: Callable[..., Readout] = told
    options: tuple[tuple[str, Any], ...] = ()
    traced: dict[str, float] = field(default_factory=dict)
    spec: dict[str, float] = field(default_factory=dict)

    def draw(
        self, steps: int, prompt: np.ndarray, fixed: np.ndarray, seed: int = 0
    ) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, nfe) of the compiled sampler."""
        run = _program(self.sampler, self.process, self.apply, self.options)
        spec = SampleSpec(steps, **{"temperature": 1.0, "top_k": 0, "top_p": 1.0} | self.spec)
        key, params = step_key(seed, 0), self.params(steps)
        tokens, stats = run(params, key, prompt, fixed, spec, self.traced)
        return np.asarray(tokens), np.asarray(stats.nfe)


@functools.cache
def _program(sampler: str, process: Process, apply: Callable, options: tuple) -> Callable:
    def run(params, key, prompt, fixed, spec, traced):
        sample = SAMPLERS[sampler].sample
        return sample(apply, params, key, prompt, fixed, process, spec, **dict(options), **traced)

    return jax.jit(run, compiler_options={} if sampler in FEW_DRAWS else RUNS_LONG)


def free(length: int) -> list[int]:
    """Nothing is fixed."""
    return [VOCAB] * length
