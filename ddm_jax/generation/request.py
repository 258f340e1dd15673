"""How to draw from a run: the sampler, its options and the random stream."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from ddm_jax.config import Config
from ddm_jax.runs.run import OptionValue, with_sampler


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
