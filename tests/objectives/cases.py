"""A row of the table of objectives (table.py): an objective, a network, the means of its draws."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddm_jax.diffusion.process import Process
from ddm_jax.models.readout import Readout
from ddm_jax.objectives import OBJECTIVES, LossOutput
from tests.batch import batch_of, noise_of
from tests.objectives.enumeration import VOCAB
from tests.visible import visible_network

PAD = 1  # the token of the padding
Means = Mapping[str, np.ndarray]


def guarded(hidden: jax.Array, tokens: jax.Array, length: int) -> Readout:
    """Answers float[b, L, V] of L tokens; not a number at the padding, and if that has changed."""
    hidden = jnp.where((tokens[:, length] == PAD)[:, None, None], hidden, jnp.nan)
    rest = ((0, 0), (0, tokens.shape[1] - length), (0, 0))
    hidden = jnp.pad(hidden[:, :length], rest, constant_values=jnp.nan)
    return Readout(hidden, jnp.eye(VOCAB), jnp.zeros(VOCAB), VOCAB)


def told(params: Mapping[str, jax.Array], tokens: jax.Array, sigma: Any = None) -> Readout:
    """A network that looks its answer up, and another one at each step.

    params: "says", float32[T or 1, S^L, L, V].
    """
    says = params["says"]
    length = says.shape[2]
    size = round(says.shape[1] ** (1 / length))
    step = 0 if len(says) == 1 else sigma.astype(int) - 1
    number = (tokens[:, :length] * size ** np.arange(length)[::-1]).sum(1)
    return guarded(says[step, number], tokens, length)


def in_noise(params: Mapping[str, jax.Array], tokens: jax.Array, sigma: jax.Array) -> Readout:
    """The same, times tanh(sigma): it hears how much noise there is."""
    out = told(params, tokens)
    return Readout(out.hidden * jnp.tanh(sigma)[:, None, None], out.kernel, out.bias, VOCAB)


def seeing(params: Mapping[str, jax.Array], tokens: jax.Array, **call: jax.Array) -> Readout:
    """A network that knows what `attend` lets it see; the last of the L tokens is the padding."""
    out = visible_network(params["says"])(None, tokens, **call)
    return guarded(out.hidden, tokens, params["says"].shape[1] - 1)


class Drawn(NamedTuple):
    """What one program gives.

    Attributes:
      out: of all draws.
      changed: which tokens the network saw changed, bool[b, L], or None where it is in a loop.
      sigma: float[b] that the network was told, or None.
    """

    out: LossOutput
    changed: np.ndarray | None
    sigma: np.ndarray | None


@dataclass(frozen=True, eq=False)
class Case:
    """A row of the table.

    Attributes:
      objective: a key of OBJECTIVES.
      process: makes its process.
      says: what `apply` reads its answers from.
      x0: the sequence; after it there is a token of padding.
      exact: the mean of "loss", of "bound" if that differs, and of each metric.
      gap: bound - loss of every draw, or None where it is not always the same.
      count: how many draws.
      apply: the network.
      params: of the objective.
      options: of the objective.
      looped: whether the network is evaluated in a loop.
      altered: sigma float[b] -> the chance that a token has changed, or None where the network is
        not told sigma_bar.
    """

    objective: str
    process: Callable[[], Process]
    says: np.ndarray
    x0: tuple[int, ...]
    exact: Callable[[], Means]
    gap: float | None = 0.0
    count: int = 40_000
    apply: Callable[..., Readout] = told
    params: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    looped: bool = False
    altered: Callable[[np.ndarray], np.ndarray] | None = None

    @functools.cached_property
    def drawn(self) -> Drawn:
        """By one compiled program."""
        x0, process, given = np.array(self.x0), self.process(), []

        def watched(params, tokens, *sigma, **call):
            given.append((tokens[:, : len(x0)] != x0, *sigma))
            return self.apply(params, tokens, *sigma, **call)

        @jax.jit
        def run(params, batch, noise):
            loss = OBJECTIVES[self.objective].loss
            out = loss(watched, params, batch, noise, process, **self.options)
            return out, None if self.looped else given[0]

        tokens = np.tile(np.append(x0, PAD), (self.count, 1))
        batch = batch_of(tokens, np.arange(len(x0) + 1) < len(x0))
        params = {"says": np.float32(self.says), **self.params}
        out, seen = jax.device_get(run(params, batch, noise_of(self.count)))
        changed, *sigma = seen or (None,)
        return Drawn(out, changed, *(sigma or (None,)))
