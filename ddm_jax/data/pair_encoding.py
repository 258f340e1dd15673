"""How a pair of texts becomes tokens, and the shapes of the batches that hold pairs."""

import numpy as np
from numpy.typing import ArrayLike

from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError


def encode(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Encodes one side of a pair as int32[n], without EOS (see `with_leading_space`)."""
    return tokenizer.encode(with_leading_space(text))


def with_leading_space(text: str) -> str:
    """Puts a space before the text: its first word is then encoded like a word inside a text."""
    return f" {text}"


def decode(tokenizer: Tokenizer, ids: ArrayLike) -> str:
    """Inverts `encode`: int[n] ids up to the first EOS -> text."""
    ids = np.asarray(ids)
    words = ids[: np.argmax(ids == tokenizer.eos_id)] if tokenizer.eos_id in ids else ids
    return tokenizer.decode(words).removeprefix(" ")


def bucket_shapes(length: int, source_length: int, count: int) -> tuple[tuple[int, int], ...]:
    """Returns (S, N) of each bucket, the longest last; each is half as long as the next.

    Args:
      length: N of the last bucket: tokens of the longest target, EOS included.
      source_length: S of the last bucket: tokens of the longest source, EOS included.
      count: number of buckets.

    Raises:
      UserError: a length cannot be halved that often.
    """
    halves = 2 ** (count - 1)
    for name, value in (("length", length), ("source_length", source_length)):
        if value % halves:
            raise UserError(
                f"data.{name}={value} is not divisible by {halves}, as data.buckets={count} "
                f"needs: make it a multiple of {halves}, or lower data.buckets."
            )
    parts = [2**k for k in reversed(range(count))]
    return tuple((source_length // part, length // part) for part in parts)


def bucket_of(lengths: np.ndarray, shapes: tuple[tuple[int, int], ...]) -> np.ndarray:
    """Returns the smallest bucket that holds both sides of each pair.

    Args:
      lengths: int[n, 2] tokens of source and target, EOS included.
      shapes: see `bucket_shapes`.

    Returns:
      int[n]; `len(shapes)` for a pair that no bucket holds.
    """
    too_short = [(lengths > np.array(shape)).any(axis=1) for shape in shapes]
    return np.sum(too_short, axis=0)
