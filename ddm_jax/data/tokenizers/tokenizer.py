"""`data.tokenizer` -> a tokenizer: text to token ids and back.

A tokenizer is a frozen record (kind and model file); the table `CODECS` has the functions of each
kind. A tokenizer has no mask token: the mask id is `vocab_size`.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np

from ddm_jax.data.tokenizers import characters, gpt2, sentencepiece_bpe
from ddm_jax.errors import UserError

KINDS = ("sentencepiece:VOCAB_SIZE", "sentencepiece:PATH.model", "gpt2", "bytes", "text8")
_RECORD, _MODEL = "tokenizer.json", "tokenizer.model"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text <-> ids in [0, vocab_size), EOS included.

    Attributes:
      name: the value of `data.tokenizer`; of a .model file, with the name of the file.
      kind: the part of the name before the colon.
      vocab_size: number of tokens, V, without a mask.
      eos_id: the token after each document.
      model: contents of the model file; empty if the kind has none.
    """

    name: str
    kind: str
    vocab_size: int
    eos_id: int
    model: bytes = dataclasses.field(repr=False)

    @property
    def fingerprint(self) -> str:
        """The sha256 (hex) of everything that decides the ids."""
        head = f"{self.kind}\0{self.vocab_size}\0{self.eos_id}\0".encode()
        return hashlib.sha256(head + self.model).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """Returns int32[n], without EOS; special tokens in the text are ordinary characters."""
        return _codec(self.kind, self.model).encode(text)

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """Encodes each text. Compiled kinds release the interpreter's lock: use several threads."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: np.ndarray) -> str:
        """Returns the text of int[n] ids in [0, vocab_size); EOS gives no text.

        In `text8` a space separates documents, which is also its EOS.
        """
        return _codec(self.kind, self.model).decode(np.asarray(ids))

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and, if there is a model, tokenizer.model."""
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del record["model"]
        record["fingerprint"] = self.fingerprint
        (folder / _RECORD).write_text(json.dumps(record, indent=2) + "\n")
        if self.model:
            (folder / _MODEL).write_bytes(self.model)


def load(folder: Path) -> Tokenizer:
    """Reads what `Tokenizer.save` wrote.

    Raises:
      UserError: the files are missing, or not the ones that were saved.
    """
    try:
        record = json.loads((folder / _RECORD).read_text())
        fingerprint = record.pop("fingerprint")
        model = (folder / _MODEL).read_bytes() if (folder / _MODEL).exists() else b""
        tokenizer = Tokenizer(**record, model=model)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"The tokenizer in {folder} cannot be read ({error}).") from error
    if tokenizer.fingerprint != fingerprint:
        raise UserError(
            f"The tokenizer in {folder} is not the one saved there (its fingerprint differs): "
            "prepare the data again."
        )
    return tokenizer


def make(spec: str, documents: Callable[[], Iterable[str]]) -> Tokenizer:
    """Makes the tokenizer that `data.tokenizer` names.

    Args:
      spec: one of `KINDS`.
      documents: returns the training documents; only called for `sentencepiece:VOCAB_SIZE`.

    Raises:
      UserError: unknown kind, no such model file, or a vocabulary that cannot be trained.
    """
    kind, name = split_spec(spec)
    if kind == "sentencepiece" and name.isdigit():
        text = sentencepiece_bpe.sample(documents())
        return _sentencepiece(spec, sentencepiece_bpe.train(text, int(name)))
    return pretrained_tokenizer(spec)


def is_trained(spec: str) -> bool:
    """Returns whether the tokenizer is trained on the corpus, so that it needs one.

    Raises:
      UserError: unknown kind.
    """
    kind, name = split_spec(spec)
    return kind == "sentencepiece" and name.isdigit()


def matches(spec: str, tokenizer: Tokenizer) -> bool:
    """Returns whether `data.tokenizer=spec` gives this tokenizer.

    Raises:
      UserError: unknown kind, or no such model file.
    """
    if is_trained(spec):
        return spec == tokenizer.name
    return pretrained_tokenizer(spec).fingerprint == tokenizer.fingerprint


def pretrained_tokenizer(spec: str) -> Tokenizer:
    """Makes a tokenizer that needs no training.

    Raises:
      UserError: unknown kind, or no such model file.
    """
    kind, name = split_spec(spec)
    return _PRETRAINED[kind](name)


def split_spec(spec: str) -> tuple[str, str]:
    """Splits `kind:name` into (kind, name).

    Raises:
      UserError: the kind is unknown, or a name is missing or not allowed.
    """
    kind, _, name = spec.partition(":")
    if kind not in _PRETRAINED or (kind == "sentencepiece") != bool(name):
        raise UserError(
            f"data.tokenizer={spec!r} is not a tokenizer: use one of {', '.join(KINDS)}."
        )
    return kind, name


def _read_sentencepiece(path: str) -> Tokenizer:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"data.tokenizer=sentencepiece:{path} is not a file: give a vocabulary size or the "
            "path of a SentencePiece .model file."
        )
    try:
        return _sentencepiece(f"sentencepiece:{file.name}", file.read_bytes())
    except RuntimeError as error:
        raise UserError(
            f"data.tokenizer=sentencepiece:{path} is not a SentencePiece model."
        ) from error


def _sentencepiece(name: str, model: bytes) -> Tokenizer:
    processor = sentencepiece_bpe.processor(model)
    eos_id = processor.eos_id()
    if eos_id < 0:
        raise UserError(
            f"data.tokenizer={name} has no end-of-sentence piece, which must follow each document: "
            "train the model with eos_id."
        )
    return Tokenizer(name, "sentencepiece", processor.get_piece_size(), eos_id, model)


_Model = TypeVar("_Model")


@dataclasses.dataclass(frozen=True)
class Codec:
    """The functions of a kind of tokenizer.

    Attributes:
      encode: text -> int32[n], without EOS.
      decode: int[n] -> text.
    """

    encode: Callable[[str], np.ndarray]
    decode: Callable[[np.ndarray], str]


def _model_codec(
    open_model: Callable[[bytes], _Model],
    encode: Callable[[_Model, str], np.ndarray],
    decode: Callable[[_Model, np.ndarray], str],
) -> Callable[[bytes], Codec]:
    def codec(model: bytes) -> Codec:
        opened = open_model(model)
        return Codec(functools.partial(encode, opened), functools.partial(decode, opened))

    return codec


_PRETRAINED: Mapping[str, Callable[[str], Tokenizer]] = {
    "sentencepiece": _read_sentencepiece,
    "gpt2": lambda _: Tokenizer("gpt2", "gpt2", gpt2.VOCAB, gpt2.EOS_ID, gpt2.vocabulary()),
    "bytes": lambda _: Tokenizer(
        "bytes", "bytes", characters.BYTES_VOCAB, characters.BYTES_EOS, b""
    ),
    "text8": lambda _: Tokenizer(
        "text8", "text8", len(characters.TEXT8), characters.TEXT8_SPACE, b""
    ),
}
CODECS: Mapping[str, Callable[[bytes], Codec]] = {
    "sentencepiece": _model_codec(
        sentencepiece_bpe.processor, sentencepiece_bpe.encode, sentencepiece_bpe.decode
    ),
    "gpt2": _model_codec(gpt2.encoding, gpt2.encode, gpt2.decode),
    "bytes": lambda _: Codec(characters.encode_bytes, characters.decode_bytes),
    "text8": lambda _: Codec(characters.encode_text8, characters.decode_text8),
}


# Opening a model takes up to a second. The record itself stays plain data, which can be pickled.
@functools.lru_cache(maxsize=8)
def _codec(kind: str, model: bytes) -> Codec:
    return CODECS[kind](model)
