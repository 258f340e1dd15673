"""Command line: text -> a prepared set of packed tokens, or of pairs. See docs/data.md.

python -m ddm_jax.prepare --source=embedded --tokenizer=gpt2 --length=1024 --out=/data/sotu
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ddm_jax import cli
from ddm_jax.data.build.packing import PACKS
from ddm_jax.data.build.pairs import prepare_pairs
from ddm_jax.data.build.text import prepare
from ddm_jax.data.build.tfds_builder import BeamSpec
from ddm_jax.data.sets.pairs import PairSpec, PreparedPairs, spec_kind
from ddm_jax.data.sets.text import PreparedSet, PrepareSpec, default_folder
from ddm_jax.data.sources import registry as sources
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.errors import UserError

DEFAULTS = PrepareSpec()
PAIR_DEFAULTS = PairSpec()

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    flags.DEFINE_string("source", DEFAULTS.source, f"One of {', '.join(sources.KINDS)}.")
    flags.DEFINE_string("tokenizer", DEFAULTS.tokenizer, f"One of {', '.join(tokenizers.KINDS)}.")
    flags.DEFINE_integer(
        "length", DEFAULTS.length, "Tokens a block; of pairs, of the longest target, EOS included."
    )
    flags.DEFINE_integer(
        "source_length",
        PAIR_DEFAULTS.source_length,
        "Of pairs: tokens of the longest source, likewise.",
    )
    flags.DEFINE_enum("pack", DEFAULTS.pack, list(PACKS), "How documents become blocks.")
    flags.DEFINE_string(
        "validation", PAIR_DEFAULTS.validation, "Held-out pairs, named like --source=pairs:...."
    )
    flags.DEFINE_string("test", PAIR_DEFAULTS.test, "Likewise.")
    flags.DEFINE_float(
        "validation_fraction",
        DEFAULTS.validation_fraction,
        "Of the documents or pairs, where there is no such split.",
    )
    flags.DEFINE_float("test_fraction", DEFAULTS.test_fraction, "Likewise.")
    flags.DEFINE_string("root", "~/.cache/ddm_jax", "Prepared sets lie here by default.")
    flags.DEFINE_string("out", None, "Folder to make; a name under --root by default.")
    flags.DEFINE_integer("workers", None, "Threads that tokenise; all cores by default.")
    flags.DEFINE_string("beam_runner", None, "Prepare with Apache Beam on this runner.")
    flags.DEFINE_multi_string(
        "beam_options", [], "A pipeline option in Beam's own spelling; may be repeated."
    )
    cli.define_json()


# What has no meaning for the other kind of data.
OF_BLOCKS = ("pack", "beam_runner", "beam_options")
OF_PAIRS = ("validation", "test", "source_length")


def summary(prepared: PreparedSet | PreparedPairs) -> str:
    """A few lines for a reader."""
    if isinstance(prepared, PreparedPairs):
        return _pair_summary(prepared)
    lines = [f"{prepared.folder}: {prepared.tokenizer.name}, blocks of {prepared.length}"]
    for split, info in prepared.splits.items():
        lines.append(
            f"  {split:<10} {info.documents:>9,} documents {info.tokens:>13,} tokens "
            f"{info.blocks:>9,} blocks  {info.bytes_per_token:.3f} bytes/token"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> None:
    """Runs the command line.

    Raises:
        UserError: see `ddm_jax.data.build.text.prepare` and `prepare_pairs`; or a flag that has no
            meaning for the source.
    """
    del argv
    kind = spec_kind(FLAGS.source)
    _check_flags(OF_BLOCKS if kind is PairSpec else OF_PAIRS)
    spec = kind(**{f.name: FLAGS[f.name].value for f in dataclasses.fields(kind)})
    beam = BeamSpec(FLAGS.beam_runner, tuple(FLAGS.beam_options)) if FLAGS.beam_runner else None
    out = Path(FLAGS.out) if FLAGS.out else default_folder(FLAGS.root, spec)
    try:
        if isinstance(spec, PairSpec):
            prepared = prepare_pairs(spec, out, workers=FLAGS.workers)
        else:
            prepared = prepare(spec, out, workers=FLAGS.workers, beam=beam)
    except KeyboardInterrupt:
        print("Interrupted: nothing is left behind.", file=sys.stderr)
        sys.exit(130)
    print(summary(prepared))
    if FLAGS.json:
        print(json.dumps({"folder": str(prepared.folder), **prepared.description()}))


def _pair_summary(prepared: PreparedPairs) -> str:
    source, target = prepared.spec.source_length, prepared.length
    lines = [f"{prepared.folder}: {prepared.tokenizer.name}, pairs of up to {source} and {target}"]
    for split, info in prepared.splits.items():
        lines.append(
            f"  {split:<10} {info.pairs:>9,} pairs {info.source_tokens:>11,} -> {info.tokens:>11,} "
            f"tokens  {info.long:,} too long  {info.empty:,} with an empty side left out"
        )
    return "\n".join(lines)


def _check_flags(foreign: Sequence[str]) -> None:
    for name in foreign:
        if FLAGS[name].present:
            raise UserError(
                f"--{name}={FLAGS[name].value} does not apply to --source={FLAGS.source}: "
                "leave it out."
            )


if __name__ == "__main__":
    cli.run(main, define_flags)
