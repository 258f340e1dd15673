"""How to draw from a run: the sampler, its options and the random stream."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ddm_jax.config import Config, SamplerConfig
from ddm_jax.errors import UserError
from ddm_jax.runs.run import OptionValue, with_sampler

# what a value must be, and the words for it
Range = tuple[Callable[[Any], bool], str]
_LARGEST = 2**31 - 1
POSITIVE: Range = (lambda x: 1 <= x <= _LARGEST, f"a whole number from 1 to {_LARGEST}")
NATURAL: Range = (lambda x: 0 <= x <= _LARGEST, f"a whole number from 0 to {_LARGEST}")
# of flags and arguments; None is within any
RANGES: Mapping[str, Range] = {
    "steps": POSITIVE,
    "batch_size": POSITIVE,
    "seed": NATURAL,
    "num": POSITIVE,
    "temperature": (lambda x: 0 <= x < math.inf, "a finite number of at least 0"),
    "top_k": NATURAL,
    "top_p": (lambda x: 0 < x <= 1, "a number above 0 and at most 1"),
}


@dataclass(frozen=True)
class SamplingRequest:
    """How to draw from a run.

    Attributes:
      sampler: a name that fits the run; "auto" for the run's.
      steps: of the sampler; None for the run's.
      options: other fields of config.sampler, such as {"temperature": 0.5}.
      seed: the same seed and batch size draw the same sequences.
      batch_size: sequences drawn at once; None for the default of what is drawn.
    """

    sampler: str = "auto"
    steps: int | None = None
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    seed: int = 0
    batch_size: int | None = None

    def apply_to(self, config: Config, length: int | None = None) -> Config:
        """The settled config of a run as this request changes it; a length of None is the run's.

        Raises:
          UserError: as `runs.run.with_sampler`.
        """
        return with_sampler(config, self.sampler, self.steps, length, self.options)


def sampler_options(sampler: SamplerConfig) -> dict[str, OptionValue]:
    """The options that this sampler has: fields that are None by default and are set."""
    names = [f.name for f in dataclasses.fields(sampler) if f.default is None]
    values = {name: getattr(sampler, name) for name in names}
    return {name: x for name, x in values.items() if x is not None}


def check_range(name: str, value: Any, allowed: Range) -> None:
    """Checks the value of an argument or a flag.

    Raises:
      UserError: it is out of range.
    """
    fits, words = allowed
    if value is not None and not fits(value):
        raise UserError(f"{name}={value} is out of range: give {words}.")
