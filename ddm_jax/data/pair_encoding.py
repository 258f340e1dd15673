"""What a pair of texts is to the rest: its tokens, and the shape of batch that it goes in."""

import numpy as np

from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """int32[n] of one side of a pair, without EOS; see `spaced`."""
    return tokenizer.encode(spaced(text))


def spaced(text: str) -> str:
    """The text after a space, so that its first word has the pieces that it has inside."""
    return f" {text}"


def decode(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """The inverse of `encode`; int[n] ids from the first EOS on leave no text."""
    ids = np.asarray(ids)
    words = ids[: np.argmax(ids == tokenizer.eos_id)] if tokenizer.eos_id in ids else ids
    return tokenizer.decode(words).removeprefix(" ")


def buckets(length: int, source_length: int, number: int) -> tuple[tuple[int, int], ...]:
    """(S, N) of each bucket, the longest last, each half as long as the next.

    Args:
        length: N of the last, the tokens of the longest target, EOS included.
        source_length: S of the last.
        number: how many.

    Raises:
        UserError: a length cannot be halved that often.
    """
    halves = 2 ** (number - 1)
    for name, value in (("length", length), ("source_length", source_length)):
        if value % halves:
            raise UserError(
                f"data.{name}={value} is not divisible by {halves}, as data.buckets={number} "
                f"needs: make it a multiple of {halves}, or lower data.buckets."
            )
    parts = [2**k for k in reversed(range(number))]
    return tuple((source_length // part, length // part) for part in parts)


def bucket_of(lengths: np.ndarray, shapes: tuple[tuple[int, int], ...]) -> np.ndarray:
    """The smallest bucket that holds both sides of each pair.

    Args:
        lengths: int[n, 2] tokens of source and target, EOS included.
        shapes: see `buckets`.

    Returns:
        int[n]; `len(shapes)` where none does.
    """
    too_short = [(lengths > np.array(shape)).any(axis=1) for shape in shapes]
    return np.sum(too_short, axis=0)
