"""SentencePiece tokenizers: trained on a corpus, or read from a .model file."""

import heapq
import io
from collections.abc import Iterable, Iterator

import numpy as np
import sentencepiece

from ddm_jax.data.splits import hash_position
from ddm_jax.errors import UserError

SAMPLE_CHARS = 2**26


def sample(documents: Iterable[str], limit: int = SAMPLE_CHARS) -> list[str]:
    """Draws a uniform sample of about `limit` characters: the documents with the largest hashes.

    The sample depends only on the texts, not on their order. Memory is bounded by `limit` and the
    longest document.
    """
    kept: list[tuple[float, str]] = []
    size = 0
    for text in documents:
        heapq.heappush(kept, (hash_position(text), text))
        size += len(text)
        while size - len(kept[0][1]) >= limit:
            size -= len(heapq.heappop(kept)[1])
    return [text for _, text in sorted(kept)]


def train(documents: Iterable[str], vocab_size: int) -> bytes:
    """Trains a byte-pair model with byte fallback, without normalisation: any text round-trips.

    Returns:
      The contents of the .model file.

    Raises:
      UserError: the vocabulary is too small for the characters of the text, or too large for it.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(documents),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            max_sentence_length=2**20,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).rsplit("] ", 1)[-1].strip().rstrip(".")
        raise UserError(
            f"data.tokenizer=sentencepiece:{vocab_size} cannot be trained on this text"
            f"{f' ({reason})' if reason else ''}: choose another vocabulary size (at least about "
            "400: 256 bytes and the characters of the text), or more text."
        ) from None
    return model.getvalue()


def processor(model: bytes) -> sentencepiece.SentencePieceProcessor:
    """Makes the tokenizer of a serialised model."""
    return sentencepiece.SentencePieceProcessor(model_proto=model)


def encode(model: sentencepiece.SentencePieceProcessor, text: str) -> np.ndarray:
    """Returns int32[n], without EOS."""
    return np.array(model.encode(text), np.int32)


def decode(model: sentencepiece.SentencePieceProcessor, ids: np.ndarray) -> str:
    """Inverts `encode`; EOS is a control piece and gives no text."""
    return model.decode(ids.tolist())


def _lines(documents: Iterable[str]) -> Iterator[str]:
    for text in documents:
        yield from (line for line in text.split("\n") if line)
