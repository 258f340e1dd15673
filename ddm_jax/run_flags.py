"""The flags of the command lines that open a trained run: sample, translate and evaluate."""

from collections.abc import Mapping
from pathlib import Path

from absl import flags

from ddm_jax import cli
from ddm_jax.config import field_type
from ddm_jax.config_fields import TYPE_WORDS
from ddm_jax.errors import UserError
from ddm_jax.generation.request import RANGES, Range, SamplingRequest, check_range
from ddm_jax.parallel import processes
from ddm_jax.runs.run import WEIGHTS, OptionValue

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags that sample, translate and evaluate share."""
    with cli.group("The run"):
        flags.DEFINE_string("workdir", "", "folder of the run, as ddm_jax.main wrote it")
        flags.DEFINE_string("weights", "ema", f"one of {', '.join(WEIGHTS)}")
    with cli.group("Sampling"):
        flags.DEFINE_string("sampler", "auto", "a sampler that fits the run; auto: the run's")
        flags.DEFINE_integer("steps", None, "steps of the sampler; the run's by default")
        flags.DEFINE_multi_string(
            "option",
            [],
            "name=value: a field of config.sampler, such as routing=cond, lengths=5, "
            "candidates=10, selection=mbr or temperature=0.5; may be repeated",
        )
        flags.DEFINE_integer(
            "batch_size", None, "sequences drawn at once: 16 by default, or 64 targets of sources"
        )
        flags.DEFINE_integer("seed", 0, "the same seed and batch size give the same sequences")
    cli.define_json()


def check(ranges: Mapping[str, Range] = RANGES) -> Path:
    """The folder of the run, once all flags are within their ranges.

    Args:
      ranges: of flags, those of `generation.request.RANGES` by default.

    Raises:
      UserError: --workdir is missing, a flag is out of range, or this is one of several processes.
    """
    processes.require_single_process()
    if not FLAGS.workdir:
        raise UserError(
            "--workdir is missing: give the folder of a run, e.g. --workdir=work/radd_tiny."
        )
    for name, allowed in {**RANGES, **ranges}.items():
        if name in FLAGS:
            check_range(f"--{name}", FLAGS[name].value, allowed)
    return Path(FLAGS.workdir).expanduser()


def sampling_request() -> SamplingRequest:
    """What the flags say of the sampler.

    Raises:
      UserError: an --option is not name=value, or its value has the wrong type.
    """
    return SamplingRequest(
        sampler=FLAGS.sampler,
        steps=FLAGS.steps,
        options=dict(map(_parse_option, FLAGS.option)),
        seed=FLAGS.seed,
        batch_size=FLAGS.batch_size,
    )


def _parse_option(text: str) -> tuple[str, OptionValue]:
    """`name=value` -> (name, value), of the type that the field of config.sampler has."""
    name, equals, value = text.partition("=")
    if not equals or name in ("name", "steps", "num"):
        raise UserError(
            f"--option={text} is not name=value of an option of the sampler: its name and steps "
            "have their own flags."
        )
    wanted = field_type(f"sampler.{name}")
    try:
        if wanted is bool:
            return name, {"true": True, "false": False}[value.lower()]
        return name, wanted(value)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"--option={text} has the wrong type: give {TYPE_WORDS[wanted]}."
        ) from error
