"""Infilling: spans of held-out text are removed, drawn again and compared with the original."""

import math
from dataclasses import dataclass

import numpy as np

from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.evaluation.judges.judge import Judge, token_nats
from ddm_jax.evaluation.reports import perplexity
from ddm_jax.generation.generate import compile_sampler, draw_batches
from ddm_jax.generation.prompts import Prompt
from ddm_jax.parallel.layouts import Layout
from ddm_jax.runs.progress import ProgressBar
from ddm_jax.runs.run import Run

SHARE = 0.25  # of the tokens of a block
SPAN = 8  # tokens


def evaluate_infilling(
    run: Run,
    layout: Layout,
    tokens: np.ndarray,
    judge: Judge | None = None,
    seed: int = 0,
    share: float = SHARE,
    span: int = SPAN,
    batch_size: int = 16,
) -> dict[str, float | int]:
    """Draws spans of held-out blocks given the rest of each block.

    The samplers for masking condition on both sides; blockwise and autoregressive ones on the left.

    Args:
      run: its config determines the sampler.
      layout: what the run was opened under; its devices divide batch_size.
      tokens: int32[N, L], the blocks.
      judge: None leaves its numbers out.
      seed: of the spans and of the draws.
      share: see `spans`.
      span: see `spans`.
      batch_size: blocks drawn at once.

    Returns:
      blocks; drawn_tokens, those of all spans; token_accuracy, the share of them that is as in the
      original; span_accuracy, the share of spans all of whose tokens are. With a judge its
      perplexity of the spans in their block, as drawn and as in the original, in its own tokens:
      perplexity_drawn and perplexity_true, and bits_per_byte_*. A token of the judge that reaches
      into a span counts. The judge's numbers are left out if it is a run with another tokenizer.
    """
    rng = np.random.default_rng(seed)
    masked = np.array([spans(rng, tokens.shape[1], share, span) for _ in tokens])
    drawn = _draw(run, layout, Prompt(tokens, ~masked), seed, batch_size)
    right = (drawn == tokens) & masked
    whole = [
        right[i, first:last].all()
        for i, row in enumerate(masked)
        for first, last in zip(*_edges(row), strict=True)
    ]
    report: dict[str, float | int] = {
        "blocks": len(tokens),
        "drawn_tokens": int(masked.sum()),
        "token_accuracy": float(right.sum() / masked.sum()),
        "span_accuracy": float(np.mean(whole)),
    }
    if judge:
        for name, rows in (("drawn", drawn), ("true", tokens)):
            judged = _judge_spans(judge, run.tokenizer, rows, masked)
            if judged:
                report[f"perplexity_{name}"] = perplexity(judged.nats / judged.tokens)
                report[f"bits_per_byte_{name}"] = judged.nats / math.log(2) / judged.bytes
    return report


def spans(rng: np.random.Generator, length: int, share: float, span: int) -> np.ndarray:
    """Places spans of `span` tokens, no two of which touch, all placements being equally likely.

    Returns:
      bool[length], True in about share * length / span spans, at least one.
    """
    number = max(1, round(share * length / span))
    number = min(number, (length + 1) // (span + 1))
    starts = np.sort(rng.choice(length - number * span + 1, number, replace=False))
    masked = np.zeros(length, bool)
    for start in starts + span * np.arange(number):
        masked[start : start + span] = True
    return masked


def _draw(run: Run, layout: Layout, prompt: Prompt, seed: int, batch_size: int) -> np.ndarray:
    """The blocks with their spans drawn: int32[N, L]."""
    num = len(prompt.tokens)
    sampler = compile_sampler(run, layout, batch_size)
    drawn: list[np.ndarray] = []
    with ProgressBar(num, unit="block") as progress:
        for batch in draw_batches(sampler, prompt, num, seed):
            drawn += list(batch.tokens)
            progress.update(len(drawn))
    return np.stack(drawn)


def _edges(masked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first index and one past the last of each run of True."""
    change = np.diff(np.pad(masked.astype(np.int8), 1))
    return np.flatnonzero(change == 1), np.flatnonzero(change == -1)


@dataclass(frozen=True)
class _Judged:
    """Sums over the judge's tokens in all spans: their nats, number and UTF-8 bytes."""

    nats: float
    tokens: int
    bytes: int


def _judge_spans(
    judge: Judge, tokenizer: Tokenizer, tokens: np.ndarray, masked: np.ndarray
) -> _Judged | None:
    """The spans of all blocks together; None where the judge cannot locate them in its tokens."""
    total, count, size = 0.0, 0, 0
    if judge.fingerprint == tokenizer.fingerprint:
        rows = list(tokens)
        found = [_own_spans(tokenizer, *row) for row in zip(tokens, masked, strict=True)]
    elif judge.byte_lengths is not None:
        rows = [judge.encode(tokenizer.decode(row)) for row in tokens]
        lengths = [judge.byte_lengths[row] for row in rows]
        found = [
            _spans_by_bytes(tokenizer, *row) for row in zip(tokens, masked, lengths, strict=True)
        ]
    else:
        return None
    for (chosen, bytes_), nats in zip(found, token_nats(judge, rows), strict=True):
        chosen[: judge.given] = False
        total += float(nats[chosen[judge.given :]].sum())
        count += int(chosen.sum())
        size += int(bytes_[chosen].sum())
    return _Judged(total, count, size)


def _own_spans(
    tokenizer: Tokenizer, row: np.ndarray, masked: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(bool[L] tokens in a span, int[L] bytes of each token), where the judge reads row itself."""
    sizes = [_size(tokenizer, row[:i]) for i in range(len(row) + 1)]
    return masked.copy(), np.diff(sizes)


def _spans_by_bytes(
    tokenizer: Tokenizer, row: np.ndarray, masked: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(bool[n] tokens of the judge that reach into a span, lengths), by the bytes of the text.

    lengths: int[n], bytes of the judge's tokens of the same text.
    """
    ends = np.cumsum(lengths)
    starts = ends - lengths
    places = [
        (_size(tokenizer, row[:first]), _size(tokenizer, row[:last]))
        for first, last in zip(*_edges(masked), strict=True)
    ]
    return np.any([(starts < last) & (ends > first) for first, last in places], axis=0), lengths


def _size(tokenizer: Tokenizer, tokens: np.ndarray) -> int:
    """UTF-8 bytes of the text of some tokens."""
    return len(tokenizer.decode(tokens).encode())
