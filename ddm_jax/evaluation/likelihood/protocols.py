"""Evaluation protocols as data: which sets, how their text becomes blocks of tokens.

`sedd` is that of SEDD (Lou et al. 2023, arXiv:2310.16834; its repository's data.py), which RADD
shares; `mdlm` that of MDLM (Sahoo et al. 2024, arXiv:2406.07524; dataloader.py); `text8` that of
D3PM (Austin et al. 2021, arXiv:2107.03006). `own_rules` are those of a run's own data.

Both repositories cut blocks with a batched map over the documents: a thousand documents are joined,
cut into blocks, and what is left over is dropped, for every thousand anew, and anew in each of the
worker processes, which share the documents out in order. So the number of processes is part of the
protocol: 8 in SEDD, and in MDLM all cores that there are, for which we take 1.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

_WIKITEXT = "WikiText (Merity et al. 2016), raw, Hugging Face data set wikitext, wikitext-{}-raw-v1"
_HUB = "Hugging Face data set {}, saved with to_json"


@dataclasses.dataclass(frozen=True)
class TextSet:
    """A set of a protocol.

    files: split -> file or glob below the data root; the split to use comes first. form: what a
    document is. rows: a line with its end, or "" if blank; lines: a line without space around it;
    jsonl: the field "text"; file: all of it. detokeniser: of DETOKENISERS. origin: where the text
    comes from. spans: split -> (first, last + 1) character of the file, where not all of it.
    """

    files: Mapping[str, str]
    form: str
    detokeniser: str
    origin: str
    spans: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How documents become blocks, and of which sets.

    tokenizer, length: as published. eos: whether one ends every document. framed: whether a block
    has an EOS before and another one after its length - 2 tokens; both count as tokens. pad: a
    block is one document, and not part of a stream. processes, group: see above; 0 documents a
    group are all. paper: whose numbers are made in this way.
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
        """Where EOS stands."""
        ends = "after every document" if self.eos else "none"
        return f"{ends}, and first (as BOS) and last in every block" if self.framed else ends

    def wrap_words(self) -> str:
        """How documents fill blocks, and what is dropped."""
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
    """How a run cuts its own text (data/build/packing.py)."""
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
    """ids: int32[n], without EOS; size: UTF-8 bytes and characters of its text, float64[2]."""

    ids: np.ndarray
    size: np.ndarray


@dataclasses.dataclass(frozen=True)
class TextBlocks:
    """Blocks of a text.

    tokens: int32[N, L]; valid: bool[N, L], False on padding. sizes: float64[N, 2], bytes and
    characters of the text of each block; where a block ends within a document, in proportion to
    its tokens. dropped: tokens, EOS included, that are in no block.
    """

    tokens: np.ndarray
    valid: np.ndarray
    sizes: np.ndarray
    dropped: int


def cut(documents: Sequence[Document], protocol: Protocol, eos_id: int, length: int) -> TextBlocks:
    """Blocks of `length` tokens, in order, by the rules of a protocol."""
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
    """What is joined: at most `group` documents each, of one process's share each."""
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
    """(int32[n] joined tokens, float64[3, m]: position, bytes and characters at every edge)."""
    eos = np.array([] if eos_id is None else [eos_id], np.int32)
    parts = [part for document in group for part in (document.ids, eos)]
    steps = [
        row
        for document in group
        for row in ((len(document.ids), *document.size), (len(eos), 0.0, 0.0))
    ]
    edges = np.cumsum(np.array([(0.0, 0.0, 0.0), *steps]), axis=0).T
    return np.concatenate(parts), edges
