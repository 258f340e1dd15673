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

_SOURCE = flags.DEFINE_string("source", DEFAULTS.source, f"One of {', '.join(sources.KINDS)}.")
_TOKENIZER = flags.DEFINE_string(
    "tokenizer", DEFAULTS.tokenizer, f"One of {', '.join(tokenizers.KINDS)}."
)
_LENGTH = flags.DEFINE_integer(
    "length", DEFAULTS.length, "Tokens a block; of pairs, of the longest target, EOS included."
)
_SOURCE_LENGTH = flags.DEFINE_integer(
    "source_length",
    PAIR_DEFAULTS.source_length,
    "Of pairs: tokens of the longest source, likewise.",
)
_PACK = flags.DEFINE_enum("pack", DEFAULTS.pack, list(PACKS), "How documents become blocks.")
_VALIDATION_FILES = flags.DEFINE_string(
    "validation", PAIR_DEFAULTS.validation, "Held-out pairs, named like --source=pairs:...."
)
_TEST_FILES = flags.DEFINE_string("test", PAIR_DEFAULTS.test, "Likewise.")
_VALIDATION = flags.DEFINE_float(
    "validation_fraction",
    DEFAULTS.validation_fraction,
    "Of the documents or pairs, where there is no such split.",
)
_TEST = flags.DEFINE_float("test_fraction", DEFAULTS.test_fraction, "Likewise.")
_ROOT = flags.DEFINE_string("root", "~/.cache/ddm_jax", "Prepared sets lie here by default.")
_OUT = flags.DEFINE_string("out", None, "Folder to make; a name under --root by default.")
_WORKERS = flags.DEFINE_integer("workers", None, "Threads that tokenise; all cores by default.")
_BEAM_RUNNER = flags.DEFINE_string("beam_runner", None, "Prepare with Apache Beam on this runner.")
_BEAM_OPTIONS = flags.DEFINE_multi_string(
    "beam_options", [], "A pipeline option in Beam's own spelling; may be repeated."
)
_JSON = cli.define_json()


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
    kind = spec_kind(_SOURCE.value)
    _check_flags(OF_BLOCKS if kind is PairSpec else OF_PAIRS)
    spec = kind(**{f.name: flags.FLAGS[f.name].value for f in dataclasses.fields(kind)})
    beam = BeamSpec(_BEAM_RUNNER.value, tuple(_BEAM_OPTIONS.value)) if _BEAM_RUNNER.value else None
    out = Path(_OUT.value) if _OUT.value else default_folder(_ROOT.value, spec)
    try:
        if isinstance(spec, PairSpec):
            prepared = prepare_pairs(spec, out, workers=_WORKERS.value)
        else:
            prepared = prepare(spec, out, workers=_WORKERS.value, beam=beam)
    except KeyboardInterrupt:
        print("Interrupted: nothing is left behind.", file=sys.stderr)
        sys.exit(130)
    print(summary(prepared))
    if _JSON.value:
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
        if flags.FLAGS[name].present:
            raise UserError(
                f"--{name}={flags.FLAGS[name].value} does not apply to --source={_SOURCE.value}: "
                "leave it out."
            )


if __name__ == "__main__":
    cli.run(main)
