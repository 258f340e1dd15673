"""Writes the targets of sources, by a run that was trained on pairs.

    python -m ddm_jax.translate --workdir=work/rdm_tiny --text='And God said, Let there be light.'
    echo 'In the beginning' | python -m ddm_jax.translate --workdir=work/rdm_tiny --input=-

One line of the input is one source, one line of the output its target. docs/seq2seq.md describes
what decides how they are drawn.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ddm_jax import cli, run_flags
from ddm_jax.errors import UserError
from ddm_jax.generation.translation import (
    open_translator,
    read_translation_config,
    settings,
    translate,
)
from ddm_jax.runs.files import write_atomically
from ddm_jax.wording import counted

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    run_flags.define_flags()
    with cli.group("Text"):
        flags.DEFINE_string("text", "", "the source itself")
        flags.DEFINE_string("input", "", "file of sources, one a line; - for standard input")
    with cli.group("Output"):
        flags.DEFINE_string("out", "", "file of targets to make; standard output by default")


def main(argv: Sequence[str]) -> None:
    """Reads, translates and writes.

    Raises:
      UserError: a bad flag, no run, or a source that is too long.
    """
    del argv
    workdir = run_flags.check()
    request = run_flags.sampling_request()
    read_translation_config(workdir, request)  # raises before the sources are read
    sources, name = _read_sources()
    out = Path(FLAGS.out).expanduser() if FLAGS.out else None
    if out and (out.exists() or not out.parent.is_dir()):
        raise UserError(f"--out={out} exists, or its folder does not: give the name of a new file.")
    run, translator = open_translator(workdir, request, FLAGS.weights)
    made = translate(translator, run.params, sources, request.seed, name)
    text = "".join(f"{line}\n" for line in made.texts)
    if out:
        write_atomically(out, text)
        print(f"Wrote {counted(len(made.texts), 'target')} to {out}", file=sys.stderr)
    else:
        print(text, end="")
    if FLAGS.json:
        result = settings(run, request.seed) | {
            "workdir": str(workdir),
            "out": str(out) if out else None,
            "num": len(made.texts),
            "nfe": sum(made.nfe) / len(made.nfe),
            "seconds": made.seconds,
            "compile_s": made.compile_s,
        }
        print(json.dumps(result))


def _read_sources() -> tuple[list[str], str]:
    """The sources, and what to call them in an error."""
    if bool(FLAGS.text) == bool(FLAGS.input):
        raise UserError("Give the sources either with --text='...' or with --input=FILE.")
    if FLAGS.text:
        return [" ".join(FLAGS.text.split("\n"))], "--text"
    name = f"--input={FLAGS.input}"
    try:
        if FLAGS.input == "-":
            text = sys.stdin.read()
        else:
            text = Path(FLAGS.input).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}): give a text file.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 ({error.reason}): convert it.") from error
    lines = text.removesuffix("\n").split("\n")
    if not text:
        raise UserError(f"{name} is empty: give a file with one source a line.")
    return lines, name


if __name__ == "__main__":
    cli.run(main, define_flags)
