"""What every sampler takes and returns.

    sample(apply, params, key, prompt, fixed, process, spec, **options)
        -> (tokens int32[B, L], Stats)

`prompt` int32[B, L] holds at the positions where `fixed` bool[B, L] is true, anywhere in the
sequence; the rest is drawn. The options are fields of config.sampler, or of config.objective where
training depends on them too, which the row of the sampler names (Sampler.options).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jax import Array

from ddm_jax.config_fields import Option

# a scalar, of Python, of numpy or (perhaps traced) of jax
Integer = int | np.int32 | Array
Number = float | np.float32 | Array

ABSORBING = ("absorbing", "d3pm_absorbing")
NO_TIME = ("none", "constant")
ANY_TIME = ("adaln", "input", *NO_TIME)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SampleSpec:
    """What may change from call to call without compiling again.

    Attributes:
      steps: int32[], steps of time, for samplers that have a choice.
      temperature: float32[], at least 0; 0 takes the best token.
      top_k: int32[], 0 for all.
      top_p: float32[] in (0, 1].
      stop: int32[], the token that ends a sequence for samplers from the left; -1 for none.
    """

    steps: Integer
    temperature: Number = 1.0
    top_k: Integer = 0
    top_p: Number = 1.0
    stop: Integer = -1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stats:
    """What a sampler reports of each sequence in addition to its tokens.

    Attributes:
      nfe: int32[B], the number of network evaluations.
      score: float32[B], nats: the mean log-probability of its tokens when they were accepted, at
        temperature 1; None where the sampler has none (Sampler.scores).
    """

    nfe: Array
    score: Array | None = None


Sample = Callable[..., tuple[Array, Stats]]


@dataclass(frozen=True)
class Sampler:
    """One row of the table of samplers.

    Attributes:
      sample: the function.
      options: the fields of config.sampler that `sample` takes, with their defaults.
      trained_options: the fields of config.objective that it takes as well, with the defaults for
        objectives that lack them.
      predicts: what the network may predict (Objective.predicts), any of them.
      processes: what config.process.name may be.
      times: what config.model.time may be.
      scores: whether Stats.score is there.
    """

    sample: Sample
    options: tuple[Option, ...] = ()
    trained_options: tuple[Option, ...] = ()
    predicts: tuple[str, ...] = ("x0",)
    processes: tuple[str, ...] = ABSORBING
    times: tuple[str, ...] = ANY_TIME
    scores: bool = False
