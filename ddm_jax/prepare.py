"""Prepares a set of packed tokens, or of pairs, from text (docs/data.md).

    python -m ddm_jax.prepare --source=embedded --tokenizer=gpt2 --length=1024 --out=work/sotu

Training prepares text on this machine by itself, the first time. This command also downloads. A run
reads the set with --config.data.source=FOLDER.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from ddm_jax import cli
from ddm_jax.data.build.packing import PACKERS
from ddm_jax.data.build.pairs import prepare_pairs
from ddm_jax.data.build.text import prepare_text
from ddm_jax.data.build.tokenise_shards import BeamSpec
from ddm_jax.data.sets.kinds import PreparedSet, Spec, default_folder, spec_type
from ddm_jax.data.sets.pairs import PairSpec, PreparedPairs
from ddm_jax.data.sets.text import TextSpec
from ddm_jax.data.sources import registry as sources
from ddm_jax.data.tokenizers import tokenizer as tokenizers
from ddm_jax.errors import UserError
from ddm_jax.wording import columns, counted

FLAGS = flags.FLAGS
# Flags that do not apply to the other kind of data.
TEXT_FLAGS = ("pack", "beam_runner", "beam_options")
PAIR_FLAGS = ("source_length",)


def define_flags() -> None:
    """Defines the flags of this command."""
    text, pairs = TextSpec(), PairSpec()
    with cli.group("Text"):
        flags.DEFINE_string(
            "source",
            text.source,
            f"one of {', '.join(sources.KINDS)}; GLOB may be a folder, and #NAME after it names "
            "another field or column than text",
        )
        flags.DEFINE_string("tokenizer", text.tokenizer, f"one of {', '.join(tokenizers.KINDS)}")
        flags.DEFINE_integer(
            "length", text.length, "tokens per block; of pairs, of the longest target, EOS included"
        )
        flags.DEFINE_integer(
            "source_length", pairs.source_length, "of pairs: tokens of the longest source, likewise"
        )
        flags.DEFINE_enum("pack", text.pack, list(PACKERS), "how documents become blocks")
    with cli.group("Held-out text"):
        flags.DEFINE_string(
            "validation", text.validation, "source of the validation split, named like --source"
        )
        flags.DEFINE_string("test", text.test, "likewise, of the test split")
        flags.DEFINE_float(
            "validation_fraction",
            text.validation_fraction,
            "of the documents or pairs, if there is no such split",
        )
        flags.DEFINE_float("test_fraction", text.test_fraction, "likewise, of the test split")
    with cli.group("Work"):
        flags.DEFINE_integer("workers", None, "threads that tokenise; all cores by default")
        flags.DEFINE_string("beam_runner", None, "prepare with Apache Beam on this runner")
        flags.DEFINE_multi_string(
            "beam_options", [], "a pipeline option in Beam's own spelling; may be repeated"
        )
    with cli.group("Output"):
        flags.DEFINE_string("out", None, "folder to make; a name under --root by default")
        flags.DEFINE_string("root", "~/.cache/ddm_jax", "folder of prepared sets without --out")
    cli.define_json()


def main(argv: Sequence[str]) -> None:
    """Prepares the set and prints its figures.

    Raises:
      UserError: see `prepare_text` and `prepare_pairs`; or a flag does not apply to the source.
    """
    del argv
    spec_class = spec_type(FLAGS.source)
    for name in TEXT_FLAGS if spec_class is PairSpec else PAIR_FLAGS:
        if FLAGS[name].present:
            raise UserError(
                f"--{name}={FLAGS[name].value} does not apply to --source={FLAGS.source}: "
                "leave it out."
            )
    fields: dict[str, Any] = {f.name: FLAGS[f.name].value for f in dataclasses.fields(spec_class)}
    spec: Spec = spec_class(**fields)
    beam = BeamSpec(FLAGS.beam_runner, tuple(FLAGS.beam_options)) if FLAGS.beam_runner else None
    out = Path(FLAGS.out) if FLAGS.out else default_folder(FLAGS.root, spec)
    prepared: PreparedSet
    try:
        if isinstance(spec, PairSpec):
            prepared = prepare_pairs(spec, out, workers=FLAGS.workers)
        else:
            prepared = prepare_text(spec, out, workers=FLAGS.workers, beam=beam)
    except KeyboardInterrupt:
        print("Interrupted: nothing is left behind.", file=sys.stderr)
        sys.exit(130)
    print(summarise(prepared))
    if FLAGS.json:
        print(json.dumps({"folder": str(prepared.folder), **prepared.description()}))


def summarise(prepared: PreparedSet) -> str:
    """Returns a few lines for a reader."""
    if isinstance(prepared, PreparedPairs):
        return _summarise_pairs(prepared)
    rows = [["split", "documents", "tokens", "blocks", "bytes/token"]]
    for split, info in prepared.splits.items():
        counts = (info.documents, info.tokens, info.blocks)
        rows.append([split, *(f"{count:,}" for count in counts), f"{info.bytes_per_token:.3f}"])
    blocks = f"blocks of {counted(prepared.length, 'token')}"
    return f"{prepared.folder}: {prepared.tokenizer.name}, {blocks}\n{columns(rows)}"


def _summarise_pairs(prepared: PreparedPairs) -> str:
    source, target = prepared.spec.source_length, prepared.length
    rows = [["split", "pairs", "source tokens", "tokens", "too long", "left out, a side is empty"]]
    for split, info in prepared.splits.items():
        counts = (info.pairs, info.source_tokens, info.tokens, info.long, info.empty)
        rows.append([split, *(f"{count:,}" for count in counts)])
    pairs = f"pairs of up to {source} and {counted(target, 'token')}"
    return f"{prepared.folder}: {prepared.tokenizer.name}, {pairs}\n{columns(rows)}"


if __name__ == "__main__":
    cli.run(main, define_flags)
