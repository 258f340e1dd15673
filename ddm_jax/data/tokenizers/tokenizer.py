"""`data.tokenizer` -> text to token ids and back.

A tokenizer is a frozen record (kind and model file); what it does comes from the table of kinds.
The mask id is not a tokenizer's business: it is `vocab_size`.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from ddm_jax.data.tokenizers import characters, gpt2
from ddm_jax.data.tokenizers import sentencepiece_bpe as sentencepieces
from ddm_jax.errors import UserError

KINDS = ("sentencepiece:VOCAB_SIZE", "sentencepiece:PATH.model", "gpt2", "bytes", "text8")
_RECORD, _MODEL = "tokenizer.json", "tokenizer.model"


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text <-> ids in [0, vocab_size), EOS included.

    Attributes:
        name: as `data.tokenizer` has it; a given model goes by its file name.
        kind: the part of the name before the colon.
        vocab_size: number of real tokens.
        eos_id: what ends a document.
        model: contents of the model file; empty where there is none.
    """

    name: str
    kind: str
    vocab_size: int
    eos_id: int
    model: bytes = dataclasses.field(repr=False)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of all that decides the ids."""
        head = f"{self.kind}\0{self.vocab_size}\0{self.eos_id}\0".encode()
        return hashlib.sha256(head + self.model).hexdigest()

    def encode(self, text: str) -> np.ndarray:
        """int32[n], without EOS. Special tokens written in the text are ordinary characters."""
        return _codec(self.kind, self.model).encode(text)

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """`encode` of each text. Compiled kinds let other threads run, so call it from several."""
        return [self.encode(text) for text in texts]

    def decode(self, ids: np.ndarray) -> str:
        """Text of int[n] ids; any id below vocab_size will do, EOS leaves no text.

        In `text8` documents are parted by a space, which is also its EOS.
        """
        return _codec(self.kind, self.model).decode(np.asarray(ids))

    def save(self, folder: Path) -> None:
        """Writes tokenizer.json and, where there is a model, tokenizer.model."""
        record = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del record["model"]
        record["fingerprint"] = self.fingerprint
        (folder / _RECORD).write_text(json.dumps(record, indent=2) + "\n")
        if self.model:
            (folder / _MODEL).write_bytes(self.model)


def load(folder: Path) -> Tokenizer:
    """What `Tokenizer.save` wrote.

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
    """The tokenizer that `data.tokenizer` names.

    Args:
        spec: one of `KINDS`.
        documents: the training documents; called for `sentencepiece:VOCAB_SIZE` alone.

    Raises:
        UserError: unknown kind, no such model file, or a vocabulary that cannot be trained.
    """
    kind, name = split_spec(spec)
    if kind == "sentencepiece" and name.isdigit():
        text = sentencepieces.sample(documents())
        return _sentencepiece(spec, sentencepieces.train(text, int(name)))
    return pretrained_tokenizer(spec)


def is_trained(spec: str) -> bool:
    """Whether the tokenizer is made from the corpus, so that it has no meaning without one.

    Raises:
        UserError: unknown kind.
    """
    kind, name = split_spec(spec)
    return kind == "sentencepiece" and name.isdigit()


def names(spec: str, tokenizer: Tokenizer) -> bool:
    """Whether `data.tokenizer=spec` stands for this tokenizer.

    Raises:
        UserError: unknown kind, or no such model file.
    """
    if is_trained(spec):
        return spec == tokenizer.name
    return pretrained_tokenizer(spec).fingerprint == tokenizer.fingerprint


def pretrained_tokenizer(spec: str) -> Tokenizer:
    """A tokenizer that needs no training.

    Raises:
        UserError: unknown kind, or no such model file.
    """
    kind, name = split_spec(spec)
    return _GIVEN[kind](name)


def split_spec(spec: str) -> tuple[str, str]:
    """`kind:name` -> (kind, name).

    Raises:
        UserError: the kind is unknown, or it has no name where it takes one.
    """
    kind, _, name = spec.partition(":")
    if kind not in _GIVEN or (kind == "sentencepiece") != bool(name):
        raise UserError(
            f"data.tokenizer={spec!r} is not a tokenizer: use one of {', '.join(KINDS)}."
        )
    return kind, name


def _given_sentencepiece(path: str) -> Tokenizer:
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"data.tokenizer=sentencepiece:{path}: there is no such file: give a vocabulary size "
            "or the path of a SentencePiece .model file."
        )
    try:
        return _sentencepiece(f"sentencepiece:{file.name}", file.read_bytes())
    except RuntimeError as error:
        raise UserError(
            f"data.tokenizer=sentencepiece:{path} is not a SentencePiece model."
        ) from error


def _sentencepiece(name: str, model: bytes) -> Tokenizer:
    pieces = sentencepieces.processor(model)
    if pieces.eos_id() < 0:
        raise UserError(
            f"data.tokenizer={name} has no end-of-sentence piece, which parts documents: train it "
            "with eos_id."
        )
    return Tokenizer(name, "sentencepiece", pieces.get_piece_size(), pieces.eos_id(), model)


@dataclasses.dataclass(frozen=True)
class _Codec:
    encode: Callable[[str], np.ndarray]
    decode: Callable[[np.ndarray], str]


def _model_codec(
    open_model: Callable[[bytes], object], encode: Callable, decode: Callable
) -> Callable[[bytes], _Codec]:
    def codec(model: bytes) -> _Codec:
        opened = open_model(model)
        return _Codec(functools.partial(encode, opened), functools.partial(decode, opened))

    return codec


_GIVEN: Mapping[str, Callable[[str], Tokenizer]] = {
    "sentencepiece": _given_sentencepiece,
    "gpt2": lambda _: Tokenizer("gpt2", "gpt2", gpt2.VOCAB, gpt2.EOS_ID, gpt2.vocabulary()),
    "bytes": lambda _: Tokenizer(
        "bytes", "bytes", characters.BYTES_VOCAB, characters.BYTES_EOS, b""
    ),
    "text8": lambda _: Tokenizer(
        "text8", "text8", len(characters.TEXT8), characters.TEXT8_SPACE, b""
    ),
}
_CODECS: Mapping[str, Callable[[bytes], _Codec]] = {
    "sentencepiece": _model_codec(
        sentencepieces.processor, sentencepieces.encode, sentencepieces.decode
    ),
    "gpt2": _model_codec(gpt2.encoding, gpt2.encode, gpt2.decode),
    "bytes": lambda _: _Codec(characters.encode_bytes, characters.decode_bytes),
    "text8": lambda _: _Codec(characters.encode_text8, characters.decode_text8),
}


# Opening a model takes up to a second; a record stays plain data, so that it can be pickled.
@functools.lru_cache(maxsize=8)
def _codec(kind: str, model: bytes) -> _Codec:
    return _CODECS[kind](model)
