"""Text around blanks -> a prompt: tokens, and the positions that keep them.

Each piece of text is encoded by itself, exactly as it is written, and keeps its tokens. Pieces of
SentencePiece and GPT-2 carry the space before a word, not the one after it: text before a blank
should end without a space, text after one begin with it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddm_jax.data.tokenizers import sentencepiece_bpe as sentencepieces
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.wording import counted


@dataclass(frozen=True)
class Prompt:
    """Tokens that are given, and the positions to draw.

    Attributes:
      tokens: int32[L], 0 where a token is to be drawn; int32[N, L] for a prompt per sequence.
      fixed: bool, of the same shape: the positions that keep their token.
    """

    tokens: np.ndarray
    fixed: np.ndarray

    @property
    def free(self) -> int:
        """Number of positions to draw."""
        return int((~self.fixed).sum())


def empty(length: int) -> Prompt:
    """The prompt that leaves all `length` positions to draw."""
    return Prompt(np.zeros(length, np.int32), np.zeros(length, bool))


def make_prompt(
    tokenizer: Tokenizer, length: int, prefix: str = "", suffix: str = "", template: str = ""
) -> Prompt:
    """The prompt of a template, or of text at the start and at the end.

    Raises:
      UserError: both are given, or as `between` and `from_template`.
    """
    if not template:
        return between(prefix, suffix, tokenizer, length)
    if prefix or suffix:
        raise UserError(
            "A template does not go with a prefix or a suffix: write them into the template."
        )
    return from_template(template, tokenizer, length)


def between(prefix: str, suffix: str, tokenizer: Tokenizer, length: int) -> Prompt:
    """The prefix at the start, the suffix at the end, and what is to be drawn between them.

    Raises:
      UserError: the tokenizer has no tokens for them, or they leave nothing to draw.
    """
    return _lay_out([prefix, None, suffix], tokenizer, length)


def from_template(text: str, tokenizer: Tokenizer, length: int) -> Prompt:
    """The prompt of text with blanks: {{5}} for five tokens, {{}} for all that are left.

    Without {{}} what is left is drawn after the text.

    Raises:
      UserError: it has no blank or a bad one, or as `between`.
    """
    return _lay_out(_parse(text), tokenizer, length)


def read_template(path: Path) -> str:
    """The text of a template, without the newline that ends the file.

    Raises:
      UserError: it cannot be read, is not UTF-8, or is empty.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(
            f"--template={path} cannot be read ({error.strerror}): give a text file with blanks, "
            "such as {{5}} for five tokens."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"--template={path} is not UTF-8 (byte {error.start}): save it as UTF-8."
        ) from error
    text = re.sub(r"\r?\n\Z", "", text)
    if not text:
        raise UserError(f"--template={path} is empty: write text with blanks, such as {{{{5}}}}.")
    return text


def _parse(text: str) -> list[str | int | None]:
    """Text, number of tokens to draw (None: what is left), text, and so on."""
    texts, blanks = (re.split(r"\{\{(.*?)\}\}", text)[i::2] for i in (0, 1))
    if not blanks:
        raise UserError(
            "The template has no blank: write {{5}} where five tokens are to be drawn, or {{}} for "
            "all that are left."
        )
    for blank in blanks:
        if not re.fullmatch(r"([1-9][0-9]{0,8})?", blank):
            raise UserError(
                f"The template has the blank {'{{' + blank[:20] + '}}'!r}: write a whole number of "
                "at least 1 in it, or nothing."
            )
    if blanks.count("") > 1:
        raise UserError(
            f"The template has {blanks.count('')} blanks {{{{}}}}: only one can take all that is "
            "left, write numbers in the others."
        )
    sizes = [int(blank) if blank else None for blank in blanks]
    return [part for pair in zip(texts, [*sizes, 0], strict=True) for part in pair]


def _lay_out(parts: Sequence[str | int | None], tokenizer: Tokenizer, length: int) -> Prompt:
    runs = [_encode(part, tokenizer) if isinstance(part, str) else part for part in parts]
    used = sum(run if isinstance(run, int) else len(run) for run in runs if run is not None)
    if used > length:
        raise UserError(
            f"The prompt takes {counted(used, 'token')}, more than the {length} of a sequence: "
            "shorten it, or set --length."
        )
    tokens, fixed, at = np.zeros(length, np.int32), np.zeros(length, bool), 0
    for run in runs:
        if isinstance(run, np.ndarray):
            tokens[at : at + len(run)] = run
            fixed[at : at + len(run)] = True
            at += len(run)
        else:
            at += length - used if run is None else run
    if fixed.all():
        raise UserError(
            f"The prompt takes all {length} tokens of a sequence and leaves nothing to draw: "
            "shorten it, or set --length."
        )
    return Prompt(tokens, fixed)


def _encode(text: str, tokenizer: Tokenizer) -> np.ndarray:
    unknown = _unknown(text, tokenizer)
    if unknown:
        raise UserError(
            f"The prompt has {unknown!r}, for which the tokenizer {tokenizer.name} has no token: "
            "leave it out."
        )
    return tokenizer.encode(text)


def _unknown(text: str, tokenizer: Tokenizer) -> str | None:
    """The first of the text that the tokenizer would lose or change."""
    # text8 rewrites all else; bytes of a command line that are not UTF-8 come as lone surrogates
    wrong = r"  |[^a-z ]" if tokenizer.kind == "text8" else r"[\ud800-\udfff]"
    if found := re.search(wrong, text):
        return found[0]
    if tokenizer.kind == "sentencepiece":
        unk = sentencepieces.processor(tokenizer.model).unk_id()
        if unk in tokenizer.encode(text):
            return next((c for c in text if unk in tokenizer.encode(c)), text)
    return None
