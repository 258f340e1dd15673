"""Judges any text by its perplexity under a language model.

    python -m ddm_jax.judge --judge=smollm2 --input=README.md,CONTRIBUTING.md

The perplexity always comes with the entropy and the repetition of the text (docs/evaluation.md). A
.jsonl file, such as ddm_jax.sample writes, has a text in the field "text" of each line. Any other
file is one text, or with --lines one text per line.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from ddm_jax import cli
from ddm_jax.errors import UserError
from ddm_jax.evaluation.judges.open import HELP, open_judge
from ddm_jax.evaluation.reports import to_json
from ddm_jax.evaluation.samples.quality import measure_quality, quality_table

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines the flags of this command."""
    with cli.group("Text"):
        flags.DEFINE_list("input", [], "files to judge, each a row of the table")
        flags.DEFINE_bool("lines", False, "every line of a file that is not .jsonl is a text")
        flags.DEFINE_integer(
            "first", None, "number of texts of a file, from the first; all by default"
        )
    with cli.group("Judge"):
        flags.DEFINE_string("judge", "", HELP)
    cli.define_json()


def main(argv: Sequence[str]) -> None:
    """Prints the table.

    Raises:
      UserError: a bad flag or file, or a judge that cannot be read.
    """
    del argv
    if not FLAGS.input:
        raise UserError("--input is missing: give files of text, e.g. --input=samples.jsonl.")
    if FLAGS.first is not None and FLAGS.first < 1:
        raise UserError(
            f"--first={FLAGS.first} is out of range: give a whole number of at least 1."
        )
    texts = {name: read_texts(Path(name).expanduser(), FLAGS.lines) for name in FLAGS.input}
    judge = open_judge(FLAGS.judge)
    print(f"Judge: {judge.name}", file=sys.stderr)
    rows = {
        name: measure_quality(found[: FLAGS.first], judge=judge) for name, found in texts.items()
    }
    print(quality_table(rows))
    if FLAGS.json:
        print(json.dumps(to_json(rows)))


def read_texts(path: Path, lines: bool = False) -> list[str]:
    """The texts of a file, in order, without those that are white space only.

    Raises:
      UserError: it cannot be read, a line of a .jsonl file has no "text", or it has no text.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--input={path} cannot be read ({error}): give a text file.") from error
    if path.suffix == ".jsonl":
        texts = [_text_of(path, i, line) for i, line in enumerate(content.split("\n"), 1) if line]
    else:
        texts = content.splitlines() if lines else [content]
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise UserError(f"--input={path} has no text: give a file with text.")
    return texts


def _text_of(path: Path, number: int, line: str) -> str:
    try:
        text = json.loads(line)["text"]
    except (ValueError, KeyError, TypeError):
        text = None
    if not isinstance(text, str):
        raise UserError(
            f'--input={path}, line {number} is not an object with a "text": give lines such as '
            "ddm_jax.sample writes."
        )
    return text


if __name__ == "__main__":
    cli.run(main, define_flags)
