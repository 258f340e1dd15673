"""The two tokenizers without a vocabulary file: bytes, and the 27 characters of text8."""

import re

import numpy as np

BYTES_EOS = 256
BYTES_VOCAB = 257
TEXT8 = " abcdefghijklmnopqrstuvwxyz"
TEXT8_SPACE = 0

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_TEXT8_IDS = np.full(256, TEXT8_SPACE, np.int32)
_TEXT8_IDS[np.frombuffer(TEXT8.encode(), np.uint8)] = np.arange(len(TEXT8))


def encode_bytes(text: str) -> np.ndarray:
    """Returns the UTF-8 bytes as int32[n]."""
    return np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32)


def decode_bytes(ids: np.ndarray) -> str:
    """Inverts `encode_bytes`: drops EOS; bytes that are not UTF-8 become U+FFFD."""
    return ids[ids < BYTES_EOS].astype(np.uint8).tobytes().decode("utf-8", errors="replace")


def encode_text8(text: str) -> np.ndarray:
    """Returns int32[n]: lower-case letters, digits spelt out, everything else as single spaces.

    These are the rules by which text8 was made from Wikipedia (M. Mahoney, wikifil.pl), so that
    text8 itself is encoded unchanged.
    """
    spelt = re.sub(r"[0-9]", lambda digit: f" {_DIGITS[int(digit[0])]} ", text.lower())
    plain = re.sub(r"[^a-z]+", " ", spelt)
    return _TEXT8_IDS[np.frombuffer(plain.encode("ascii"), np.uint8)]


def decode_text8(ids: np.ndarray) -> str:
    """Inverts `encode_text8` on its range."""
    return "".join(TEXT8[i] for i in ids.tolist())
