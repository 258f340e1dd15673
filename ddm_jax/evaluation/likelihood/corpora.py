"""Text to evaluate on: a held-out split, texts, files or a set of a protocol, cut into blocks."""

import dataclasses
import glob
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ddm_jax.config import Config
from ddm_jax.data.open import open_or_prepare, source_of
from ddm_jax.data.sets.text import PreparedText
from ddm_jax.data.sources import registry as sources
from ddm_jax.data.sources import text_files
from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.errors import UserError
from ddm_jax.evaluation.likelihood.detokenisers import detokenise
from ddm_jax.evaluation.likelihood.protocols import (
    PROTOCOLS,
    Document,
    Protocol,
    TextBlocks,
    TextSet,
    cut,
    own_rules,
)
from ddm_jax.wording import counted

FORMS = ("file", "lines", "rows")
OWN = "the run's own"  # protocol
DATA_ROOT = "~/.cache/ddm_jax/benchmarks"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Blocks of tokens, and how they were made.

    Attributes:
      name: of the text.
      split: of the text; "all" where it has none.
      protocol: the rules by which it was cut.
      protocol_name: a name of PROTOCOLS, or "the run's own".
      detokeniser: of DETOKENISERS, applied to every document.
      documents: their number in the text, before `first` left blocks out.
      blocks: the tokens.
      own: whether it is the run's own prepared split.
    """

    name: str
    split: str
    protocol: Protocol
    protocol_name: str
    detokeniser: str
    documents: int
    blocks: TextBlocks
    own: bool = False

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of all tokens."""
        digest = hashlib.sha256(str(self.blocks.tokens.shape).encode())
        for array in (self.blocks.tokens, self.blocks.valid):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def first(self, count: int | None) -> "Corpus":
        """The first `count` blocks; all for None."""
        blocks = dataclasses.replace(
            self.blocks,
            tokens=self.blocks.tokens[:count],
            valid=self.blocks.valid[:count],
            sizes=self.blocks.sizes[:count],
        )
        return dataclasses.replace(self, blocks=blocks)

    def texts(self, tokenizer: Tokenizer) -> list[str]:
        """The text of each block, decoded from its tokens."""
        rows = zip(self.blocks.tokens, self.blocks.valid, strict=True)
        return [tokenizer.decode(row[real]) for row, real in rows]


def own_split(config: Config, tokenizer: Tokenizer, split: str, count: int | None) -> Corpus:
    """The first blocks of a split of the run's prepared set; all for None.

    Raises:
      UserError: the set is gone or holds pairs, or the split has no block.
    """
    prepared = open_or_prepare(config.data)
    if not isinstance(prepared, PreparedText):
        raise UserError(
            f"config.data.source={config.data.source!r} holds pairs, and a likelihood is that of "
            "text: give a text."
        )
    blocks = prepared.records(split)
    count = len(blocks) if count is None else min(count, len(blocks))
    tokens, valid = blocks.read(range(count))
    texts = [tokenizer.decode(row[real]) for row, real in zip(tokens, valid, strict=True)]
    # a prepared set does not keep its text: bytes are those of an average token, and characters
    # are in proportion to them as in the decoded tokens
    decoded = np.array([[len(text.encode()), len(text)] for text in texts], float)
    bytes_ = valid.sum(axis=1) * prepared.bytes_per_token(split)
    per_byte = float(decoded[:, 1].sum()) / max(1.0, float(decoded[:, 0].sum()))
    sizes = np.stack([bytes_, bytes_ * per_byte], axis=1)
    info = prepared.splits[split]
    return Corpus(
        name=source_of(config.data, split),
        split=split,
        protocol=own_rules(config.data.length, config.data.pack),
        protocol_name=OWN,
        detokeniser="none",
        documents=info.documents,
        blocks=TextBlocks(tokens, valid, _sizes(tokenizer, valid, sizes), info.dropped_tokens),
        own=True,
    )


def corpus_of_texts(
    texts: Sequence[str], config: Config, tokenizer: Tokenizer, protocol_name: str = ""
) -> Corpus:
    """The blocks of some texts, each a document, without a detokeniser.

    protocol_name: a name of PROTOCOLS, or "": the texts are cut as the run cuts its own.

    Raises:
      UserError: the protocol is unknown, or the texts fill no block.
    """
    length = config.data.length
    protocol = _protocol(protocol_name, config)
    return Corpus(
        name="texts",
        split="all",
        protocol=protocol,
        protocol_name=protocol_name or OWN,
        detokeniser="none",
        documents=len(texts),
        blocks=_cut(texts, "none", protocol, tokenizer, length, "The list of texts"),
    )


def open_corpus(
    dataset: str,
    protocol_name: str,
    split: str | None,
    config: Config,
    tokenizer: Tokenizer,
    data_root: str = DATA_ROOT,
    form: str = "file",
) -> Corpus:
    """The blocks of a text other than the run's own.

    Args:
      dataset: NAME of a set of the protocol, whose file is below `data_root`; NAME=TEXT, its rules
        applied to the text that is named; or TEXT itself: a path or glob, hf:NAME or tfds:NAME.
      protocol_name: a name of PROTOCOLS, or "": the text is cut as the run cuts its own.
      split: of a set or a hub; None: the protocol's, or test.
      config: of the run: its data.length is that of a block.
      tokenizer: of the run.
      data_root: folder of the protocols' files.
      form: what a document of a text file is, where the text is not a set's; one of FORMS.

    Raises:
      UserError: the text does not exist, with where to get it; or it fills no block.
    """
    name, _, text = dataset.partition("=")
    length, protocol = config.data.length, _protocol(protocol_name, config)
    if name in protocol.sets:
        text_set = protocol.sets[name]
        split = split or next(iter(text_set.files))
        if not text:
            text = _file_of(name, text_set, split, data_root)
    else:
        text_set = TextSet({}, form, "none", "")
        if text or not _is_text(dataset):
            raise _unknown(dataset, name, protocol_name)
        text, split = dataset, (split or "test") if _on_hub(dataset) else "all"
    texts = _read(text, text_set.form, split)
    if split in text_set.spans and text_set.form == "file":
        first, last = text_set.spans[split]
        texts = [document[first:last] for document in texts]
    return Corpus(
        name=name if name in protocol.sets else text,
        split=split,
        protocol=protocol,
        protocol_name=protocol_name or OWN,
        detokeniser=text_set.detokeniser,
        documents=len(texts),
        blocks=_cut(
            texts, text_set.detokeniser, protocol, tokenizer, length, f"--dataset={dataset}"
        ),
    )


def comparable(corpus: Corpus, tokenizer: Tokenizer, length: int) -> str:
    """With whose published numbers a number on these blocks compares, or why with none."""
    protocol = corpus.protocol
    if not protocol.sets:
        return "no: this is not a published protocol"
    if corpus.name not in protocol.sets:
        return f"no: {corpus.name} is not a set of this protocol"
    if tokenizer.kind != protocol.tokenizer:
        return f"no: the run's tokenizer is {tokenizer.name}, the papers' {protocol.tokenizer}"
    if length != protocol.length:
        return f"no: the run reads {length} tokens at once, the papers' {protocol.length:,}"
    return f"with {protocol.paper}, if the text is the published one"


def _protocol(name: str, config: Config) -> Protocol:
    if not name:
        return own_rules(config.data.length, config.data.pack)
    if name not in PROTOCOLS:
        raise UserError(f"--protocol={name} is unknown: use one of {', '.join(PROTOCOLS)}.")
    return PROTOCOLS[name]


def _cut(
    texts: Sequence[str],
    detokeniser: str,
    protocol: Protocol,
    tokenizer: Tokenizer,
    length: int,
    named: str,
) -> TextBlocks:
    """Detokenises, encodes and cuts documents; `named` is how an error calls them."""
    documents = [_document(tokenizer, detokenise(detokeniser, text)) for text in texts]
    blocks = cut(documents, protocol, tokenizer.eos_id, length)
    if not len(blocks.tokens):
        raise UserError(
            f"{named} has {counted(blocks.dropped, 'token')} in "
            f"{counted(len(documents), 'document')}, which fill no block of "
            f"config.data.length={length}: give more text."
        )
    return dataclasses.replace(blocks, sizes=_sizes(tokenizer, blocks.valid, blocks.sizes))


def _sizes(tokenizer: Tokenizer, valid: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The sizes of blocks; a token of text8 always counts as one byte and one character."""
    return np.repeat(valid.sum(axis=1)[:, None], 2, 1) if tokenizer.kind == "text8" else sizes


def _document(tokenizer: Tokenizer, text: str) -> Document:
    return Document(tokenizer.encode(text), np.array([len(text.encode()), len(text)], float))


def _is_text(spec: str) -> bool:
    return _on_hub(spec) or bool(_matches(spec))


def _on_hub(spec: str) -> bool:
    return spec.partition(":")[0] in ("hf", "tfds")


def _matches(spec: str) -> list[Path]:
    found = glob.glob(str(Path(spec).expanduser()), recursive=True)
    return sorted(path for path in map(Path, found) if path.is_file())


def _file_of(name: str, text_set: TextSet, split: str, data_root: str) -> str:
    if split not in text_set.files:
        raise UserError(
            f"--split={split} is not a split of {name} in this protocol: use "
            f"{' or '.join(text_set.files)}, or give its text with --dataset={name}=PATH."
        )
    path = Path(data_root).expanduser() / text_set.files[split]
    if not _matches(str(path)):
        raise UserError(
            f"There is no {path}: get it ({text_set.origin}; {split} split) and put it there, or "
            f"give it with --dataset={name}=PATH."
        )
    return str(path)


def _unknown(dataset: str, name: str, protocol_name: str) -> UserError:
    if protocol_name:
        known = ", ".join(PROTOCOLS[protocol_name].sets)
        return UserError(
            f"--dataset={dataset} is neither a set of --protocol={protocol_name} ({known}) nor a "
            "file: give one of these, a path, hf:NAME or tfds:NAME."
        )
    having = [protocol for protocol, row in PROTOCOLS.items() if name in row.sets]
    if having:
        return UserError(
            f"--dataset={dataset} is a set of a protocol: add --protocol={' or '.join(having)}."
        )
    return UserError(
        f"--dataset={dataset} matches no file: give a path, hf:NAME, tfds:NAME, or with "
        f"--protocol={'|'.join(PROTOCOLS)} the name of a set."
    )


def _read(text: str, form: str, split: str) -> list[str]:
    """The documents of a text, in order; empty ones too, since the rules of a set need them."""
    if _on_hub(text):
        shards = sources.open_source(text).shards
        if split not in shards:
            raise UserError(f"--split={split}: {text} has the splits {', '.join(shards)} only.")
        return [document for shard in shards[split] for document in shard.read()]
    paths = _matches(text)
    if not paths:
        raise UserError(f"--dataset: {text} matches no file: give a path or a glob of text files.")
    if all(path.suffix in (".jsonl", ".json") for path in paths):
        return [
            document
            for shard in text_files.open_files("jsonl", text, f"--dataset={text}")
            for document in shard.read()
        ]
    if form == "jsonl":
        raise UserError(f'{text} must be .jsonl, each line an object like {{"text": "..."}}.')
    return [document for path in paths for document in _documents(path, form)]


def _documents(path: Path, form: str) -> Iterable[str]:
    try:
        with path.open(encoding="utf-8") as file:
            if form == "file":
                return [file.read()]
            if form == "lines":
                return [line.strip() for line in file]
            return [line if line.strip() else "" for line in file]
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error.reason}): convert it to UTF-8.") from error
