"""Perplexity of any text under a judge: a causal language model with a tokenizer of its own.

A low perplexity says little by itself, because repetitive text has one too: samples/quality.py
reports it together with the entropy.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from ddm_jax.errors import UserError
from ddm_jax.evaluation.reports import perplexity
from ddm_jax.wording import counted

_BATCH_TOKENS = 4096  # judged at once
_SHORTEST = 16  # rows are padded to a power of two, at least this, so that few programs serve all


@dataclass(frozen=True)
class Judge:
    """A causal language model that reads texts.

    Attributes:
      name: for reports.
      encode: text -> int32[n].
      nats: int32[B, W] -> float32[B, W], -log p of each token given those before it in its row;
        tokens after it change nothing.
      window: the largest number of tokens that it reads at once.
      given: leading tokens of a text that are context only and are not judged: 1 for a model
        without a token that starts a text, as in published generative perplexities under GPT-2; 0
        for one that has it.
      fingerprint: of its tokenizer, if that is one of data.tokenizers; otherwise "".
      byte_lengths: int32[V], bytes of text that each token stands for; None where they cannot be
        derived from the tokens.
    """

    name: str
    encode: Callable[[str], np.ndarray]
    nats: Callable[[np.ndarray], jax.Array]
    window: int
    given: int
    fingerprint: str = ""
    byte_lengths: np.ndarray | None = None


@dataclass(frozen=True)
class Judgement:
    """The judgement of N texts, each summed over its judged tokens.

    Attributes:
      nats: float64[N].
      tokens: int64[N], those of the judge.
      bytes: int64[N], UTF-8 bytes of the judged tokens.
      words: int64[N], separated by white space.
    """

    nats: np.ndarray
    tokens: np.ndarray
    bytes: np.ndarray
    words: np.ndarray

    def metrics(self) -> dict[str, float]:
        """The numbers of a report.

        Returns:
          perplexity: exp of the sum of nats over the sum of tokens, over all texts (as MDLM).
          perplexity_mean: that of each text, averaged over texts (as SEDD); it is higher, the more
            the texts differ.
          nats_per_token, nats_per_token_stderr: a ratio of sums, and its standard error over texts
            (nan for one text).
          bits_per_byte: a ratio of sums, which does not depend on the judge's tokenizer.
          word_perplexity: from a ratio of sums, likewise; inf where words are long, as in scripts
            without spaces.
          judged_tokens, judged_texts: what these were counted over.
        """
        judged = self.tokens > 0
        nats, tokens = self.nats[judged], self.tokens[judged]
        rate = float(nats.sum()) / int(tokens.sum())
        return {
            "perplexity": perplexity(rate),
            "perplexity_mean": float(np.exp(nats / tokens).mean()),
            "nats_per_token": float(rate),
            "nats_per_token_stderr": _stderr(nats, tokens),
            "bits_per_byte": float(nats.sum() / math.log(2) / self.bytes[judged].sum()),
            "word_perplexity": perplexity(float(nats.sum()) / int(self.words[judged].sum())),
            "judged_tokens": int(tokens.sum()),
            "judged_texts": len(nats),
        }


def judge_texts(
    judge: Judge, texts: Sequence[str], tokens: Sequence[np.ndarray] | None = None
) -> Judgement:
    """The judgement of each text.

    Args:
      judge: see Judge.
      texts: any.
      tokens: int[n_i], the judge's own tokens of each text as they were drawn. By default the
        texts are encoded, which may give other tokens than those that were drawn.

    Raises:
      UserError: no text has a token to judge.
    """
    sequences = [judge.encode(text) for text in texts] if tokens is None else tokens
    nats = token_nats(judge, sequences)
    if not any(map(len, nats)):
        raise UserError(
            f"There is nothing to judge in {counted(len(texts), 'text')}: give texts of at least "
            f"{counted(judge.given + 1, 'token')}."
        )
    return Judgement(
        nats=np.array([n.sum() for n in nats]),
        tokens=np.array([len(n) for n in nats]),
        bytes=np.array([_judged_bytes(judge, *x) for x in zip(texts, sequences, strict=True)]),
        words=np.array([max(len(text.split()), 1) for text in texts]),
    )


def token_nats(judge: Judge, sequences: Sequence[np.ndarray]) -> list[np.ndarray]:
    """-log p of every token except the given ones: float64[n_i - given] for each int[n_i].

    A sequence longer than the judge's window W is read in windows that overlap, so that each token
    after the first W has at least W / 2 tokens before it.
    """
    out = [np.zeros(len(tokens)) for tokens in sequences]
    by_width: dict[int, list[tuple[int, int, int, int]]] = {}
    for i, tokens in enumerate(sequences):
        for start, end, first in windows(len(tokens), judge.window):
            width = min(max(_SHORTEST, 1 << (end - start - 1).bit_length()), judge.window)
            by_width.setdefault(width, []).append((i, start, end, first))
    for width, parts in sorted(by_width.items()):
        size = min(max(1, _BATCH_TOKENS // width), 1 << (len(parts) - 1).bit_length())
        for at in range(0, len(parts), size):
            rows = np.zeros((size, width), np.int32)
            for row, (i, start, end, _) in zip(rows, parts[at : at + size], strict=False):
                row[: end - start] = sequences[i][start:end]
            found = np.asarray(judge.nats(rows), np.float64)
            for row, (i, start, end, first) in zip(found, parts[at : at + size], strict=False):
                out[i][first:end] = row[first - start : end - start]
    return [nats[judge.given :] for nats in out]


def windows(length: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yields (start, end, first): tokens start .. end - 1 are read, and from `first` on judged."""
    first = 0
    while first < length:
        end = min(length, first + size // 2 if first else size)
        yield max(0, end - size), end, first
        first = end


def _judged_bytes(judge: Judge, text: str, tokens: np.ndarray) -> int:
    given = 0 if judge.byte_lengths is None else judge.byte_lengths[tokens[: judge.given]].sum()
    return len(text.encode()) - int(given)


def _stderr(nats: np.ndarray, tokens: np.ndarray) -> float:
    """Of sum(nats) / sum(tokens), over texts; nan for one text."""
    if len(nats) < 2:
        return math.nan
    residual = nats - float(nats.sum()) / int(tokens.sum()) * tokens
    return math.sqrt((residual**2).sum() / (len(nats) - 1) / len(nats)) / float(tokens.mean())
