"""Evaluation protocols as data: their sets, and how text becomes blocks of tokens.

`sedd` is the protocol of SEDD (Lou et al. 2023, arXiv:2310.16834; its repository's data.py) and of
RADD; `mdlm` that of MDLM (Sahoo et al. 2024, arXiv:2406.07524; dataloader.py); `text8` that of D3PM
(Austin et al. 2021, arXiv:2107.03006). `own_rules` are the rules of a run's own data.

The repositories of SEDD and MDLM cut blocks with a batched map over the documents: each thousand
documents are joined and cut into blocks, and the remainder is dropped. They do so in several worker
processes, each of which has a contiguous part of the documents. So the number of processes is part
of the protocol: 8 in SEDD; in MDLM the number of cores of the machine, for which we take 1.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

_WIKITEXT = "WikiText (Merity et al. 2016), raw, Hugging Face data set wikitext, wikitext-{}-raw-v1"
_HUB = "Hugging Face data set {}, saved with to_json"


@dataclasses.dataclass(frozen=True)
class TextSet:
    """A set of a protocol.

    Attributes:
      files: split -> file or glob below the data root; the split to use comes first.
      form: what a document is. rows: a line with its end, or "" if blank; lines: a line without
        space around it; jsonl: the field "text" of a line; file: the whole file.
      detokeniser: a name of DETOKENISERS.
      origin: where to get the text.
      spans: split -> (first, last + 1) character of the file, where a split is a part of it.
    """

    files: Mapping[str, str]
    form: str
    detokeniser: str
    origin: str
    spans: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How documents become blocks, and the sets of the protocol.

    Attributes:
      sets: name -> set.
      paper: whose numbers are computed in this way.
      tokenizer: the published one, by its kind.
      length: of a block, as published.
      eos: whether an EOS ends every document.
      framed: whether a block has an EOS before and another one after its length - 2 tokens; both
        count as tokens.
      pad: whether a block is one document, padded, and not a part of a stream.
      processes: worker processes that the documents are divided among (see above).
      group: documents that are joined at a time; 0 for all of a process.
    """

    sets: Mapping[str, TextSet]
    paper: str
    tokenizer: str = "gpt2"
    length: int = 1024
    eos: bool = True
    framed: bool = False
    pad: bool = False
    processes: int = 1
    group: int = 0

    def eos_words(self) -> str:
        """Where the EOS tokens are, in words."""
        ends = "after every document" if self.eos else "none"
        return f"{ends}, and first (as BOS) and last in every block" if self.framed else ends

    def wrap_words(self) -> str:
        """How documents fill blocks, and what is dropped, in words."""
        if self.pad:
            return "one document a block, cut or padded; padding does not count"
        if not self.group:
            return "all documents joined and cut; the tail that fills no block is dropped"
        parts = f" in each of {self.processes} parts" if self.processes > 1 else ""
        return (
            f"every {self.group} documents{parts} joined and cut; each time the tail that fills no "
            "block is dropped"
        )


def own_rules(length: int, pack: str) -> Protocol:
    """The rules by which a run cuts its own text (data/build/packing.py)."""
    return Protocol({}, "", "", length, pad=pack == "pad")


def _wikitext(number: int) -> TextSet:
    files = {"validation": f"wikitext{number}/wiki.valid.raw"}
    files |= {split: f"wikitext{number}/wiki.{split}.raw" for split in ("test", "train")}
    return TextSet(files, "rows", "wikitext", _WIKITEXT.format(number))


_SHARED: Mapping[str, TextSet] = {
    "lambada": TextSet(
        {"test": "lambada/lambada_test.jsonl"},
        "jsonl",
        "lambada",
        "LAMBADA, OpenAI's version for GPT-2, lambada_test.jsonl",
    ),
    "ptb": TextSet(
        {
            "validation": "ptb/ptb.valid.txt",
            "test": "ptb/ptb.test.txt",
            "train": "ptb/ptb.train.txt",
        },
        "lines",
        "ptb",
        "Penn Treebank as Mikolov prepared it, Hugging Face data set ptb_text_only",
    ),
    "wikitext2": _wikitext(2),
    "wikitext103": _wikitext(103),
    "lm1b": TextSet(
        {"test": "lm1b/news.en.heldout-*"},
        "lines",
        "lm1b",
        "One Billion Word Benchmark, its folder heldout-monolingual.tokenized.shuffled",
    ),
}


def _papers(name: str) -> TextSet:
    return TextSet(
        {split: f"{name}/{split}.jsonl" for split in ("validation", "test")},
        "jsonl",
        "scientific_papers",
        _HUB.format(f"scientific_papers, {name}, its column article renamed text"),
    )


PROTOCOLS: Mapping[str, Protocol] = {
    "sedd": Protocol(_SHARED, "SEDD and RADD", processes=8, group=1000),
    "mdlm": Protocol(
        {
            **_SHARED,
            "ag_news": TextSet(
                {"test": "ag_news/test.jsonl"}, "jsonl", "none", _HUB.format("ag_news")
            ),
            "pubmed": _papers("pubmed"),
            "arxiv": _papers("arxiv"),
        },
        "MDLM",
        framed=True,
        group=1000,
    ),
    "text8": Protocol(
        {
            "text8": TextSet(
                {split: "text8/text8" for split in ("test", "validation", "train")},
                "file",
                "none",
                "text8 (Mahoney), the 100,000,000 bytes of text8.zip",
                {
                    "test": (95_000_000, 100_000_000),
                    "validation": (90_000_000, 95_000_000),
                    "train": (0, 90_000_000),
                },
            )
        },
        "D3PM, SEDD and MD4",
        tokenizer="text8",
        length=256,
        eos=False,
    ),
}


@dataclasses.dataclass(frozen=True)
class Document:
    """A tokenised document.

    Attributes:
      ids: int32[n], without EOS.
      size: float64[2], UTF-8 bytes and characters of its text.
    """

    ids: np.ndarray
    size: np.ndarray


@dataclasses.dataclass(frozen=True)
class TextBlocks:
    """N blocks of L tokens of a text.

    Attributes:
      tokens: int32[N, L].
      valid: bool[N, L], False on padding.
      sizes: float64[N, 2], UTF-8 bytes and characters of the text of each block; where a block ends
        within a document, in proportion to its tokens.
      dropped: number of tokens, EOS included, that are in no block.
    """

    tokens: np.ndarray
    valid: np.ndarray
    sizes: np.ndarray
    dropped: int


def cut(documents: Sequence[Document], protocol: Protocol, eos_id: int, length: int) -> TextBlocks:
    """Cuts documents into blocks of `length` tokens, in order, by the rules of a protocol."""
    body = length - 2 if protocol.framed else length
    tokens, counts, sizes, total = [], [], [], 0
    groups = ((d,) for d in documents) if protocol.pad else _groups(documents, protocol)
    for group in groups:
        stream, edges = _stream(group, eos_id if protocol.eos else None)
        total += len(stream)
        blocks = 1 if protocol.pad else len(stream) // body
        ends = np.minimum(np.arange(blocks + 1) * body, len(stream))
        rows = np.full((blocks, body), eos_id, np.int32)
        rows.reshape(-1)[: ends[-1]] = stream[: ends[-1]]
        if protocol.framed:
            rows = np.pad(rows, ((0, 0), (1, 1)), constant_values=eos_id)
        tokens.append(rows)
        counts.append(np.diff(ends))
        sizes.append(np.stack([np.diff(np.interp(ends, edges[0], x)) for x in edges[1:]], axis=1))
    if not tokens:
        return TextBlocks(
            np.zeros((0, length), np.int32), np.zeros((0, length), bool), np.zeros((0, 2)), 0
        )
    kept = np.concatenate(counts)
    valid = np.arange(length) < (kept + length - body)[:, None]
    return TextBlocks(np.concatenate(tokens), valid, np.concatenate(sizes), total - int(kept.sum()))


def _groups(documents: Sequence[Document], protocol: Protocol) -> Iterator[Sequence[Document]]:
    """The documents that are joined: at most `group`, all of the same process's part."""
    parts = max(1, min(protocol.processes, len(documents)))
    each, more = divmod(len(documents), parts)
    start = 0
    for part in range(parts):
        stop = start + each + (part < more)
        step = protocol.group or max(1, stop - start)
        for first in range(start, stop, step):
            yield documents[first : min(first + step, stop)]
        start = stop


def _stream(group: Sequence[Document], eos_id: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(joined tokens int32[n]; position, bytes and characters at every edge, float64[3, m])."""
    eos = np.array([] if eos_id is None else [eos_id], np.int32)
    parts = [part for document in group for part in (document.ids, eos)]
    steps = [
        row
        for document in group
        for row in ((len(document.ids), *document.size), (len(eos), 0.0, 0.0))
    ]
    edges = np.cumsum(np.array([(0.0, 0.0, 0.0), *steps]), axis=0).T
    return np.concatenate(parts), edges
