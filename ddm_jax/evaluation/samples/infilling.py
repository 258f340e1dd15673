"""Infilling: spans of held-out text are taken out, drawn again and compared with what was there."""

import math

import jax
import numpy as np

from ddm_jax.data.tokenizers.tokenizer import Tokenizer
from ddm_jax.evaluation.judges.judge import Judge, token_nats
from ddm_jax.experiment import make_sampler
from ddm_jax.generation.generate import make_program, make_spec
from ddm_jax.parallel.layouts import Layout
from ddm_jax.runs.run import Run, with_sampler

SHARE = 0.25  # of the tokens of a block
SPAN = 8  # tokens


def evaluate_infilling(
    run: Run,
    layout: Layout,
    tokens: np.ndarray,
    steps: int | None,
    judge: Judge | None,
    seed: int,
    share: float = SHARE,
    span: int = SPAN,
    batch_size: int = 16,
) -> dict[str, float | int]:
    """Draws spans of held-out blocks, int32[N, L], given the rest of each block.

    The samplers for masking condition on both sides; blockwise and autoregressive on the left.

    Args:
      run, layout, steps, judge: as samples.evaluate_samples.
      share, span: see `spans`.

    Returns:
      token_accuracy, tokens of the spans that come back as they were; span_accuracy, whole spans;
      with a judge its perplexity of the spans in their block, as drawn and true, in its own tokens:
      perplexity_drawn, perplexity_true, and bits_per_byte_*. A token of the judge that reaches
      into a span counts. Without these where the judge is a run with another tokenizer.
    """
    config = with_sampler(run.config, steps=steps)
    rng = np.random.default_rng(seed)
    masked = np.array([spans(rng, tokens.shape[1], share, span) for _ in tokens])
    spec = make_spec(config.sampler.steps, config.sampler.temperature, 0, 1.0)
    key, spec = jax.device_put((jax.random.key(seed), spec), layout.replicated)
    program = make_program(make_sampler(config), run.network.apply, run.process)
    drawn = []
    for at in range(0, len(tokens), batch_size):
        # rows beyond the last block have nothing to draw
        filled = ((0, batch_size - len(tokens[at : at + batch_size])), (0, 0))
        prompt = np.pad(tokens[at : at + batch_size], filled)
        fixed = np.pad(~masked[at : at + batch_size], filled, constant_values=True)
        rows = layout.put_batch({"prompt": prompt, "fixed": fixed})
        batch_key = jax.random.fold_in(key, at // batch_size)
        out, _ = jax.device_get(program(run.params, batch_key, **rows, spec=spec))
        drawn.append(out[: len(tokens) - at])
    found = np.concatenate(drawn)
    right = (found == tokens) & masked
    whole = [
        right[i, a:b].all()
        for i, row in enumerate(masked)
        for a, b in zip(*_edges(row), strict=True)
    ]
    report = {
        "blocks": len(tokens),
        "drawn_tokens": int(masked.sum()),
        "token_accuracy": float(right.sum() / masked.sum()),
        "span_accuracy": float(np.mean(whole)),
    }
    if judge:
        for name, rows in (("drawn", found), ("true", tokens)):
            judged = _span_nats(judge, run.tokenizer, rows, masked)
            if judged:
                nats, count, size = judged
                report[f"perplexity_{name}"] = math.exp(nats / count)
                report[f"bits_per_byte_{name}"] = nats / math.log(2) / size
    return report


def spans(rng: np.random.Generator, length: int, share: float, span: int) -> np.ndarray:
    """bool[L]: apart from each other, about share * L / span of them, all places as likely."""
    number = max(1, round(share * length / span))
    number = min(number, (length + 1) // (span + 1))
    starts = np.sort(rng.choice(length - number * span + 1, number, replace=False))
    masked = np.zeros(length, bool)
    for start in starts + span * np.arange(number):
        masked[start : start + span] = True
    return masked


def _edges(masked: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and one past the last of each run of True."""
    change = np.diff(np.pad(masked.astype(np.int8), 1))
    return np.flatnonzero(change == 1), np.flatnonzero(change == -1)


def _span_nats(
    judge: Judge, tokenizer: Tokenizer, tokens: np.ndarray, masked: np.ndarray
) -> tuple[float, int, int] | None:
    """(nats, tokens of the judge, their bytes) of the spans, in all blocks together."""
    as_drawn = judge.fingerprint == tokenizer.fingerprint
    if not as_drawn and judge.byte_lengths is None:
        return None
    texts = [tokenizer.decode(row) for row in tokens]
    rows = list(tokens) if as_drawn else [judge.encode(text) for text in texts]
    total, count, size = 0.0, 0, 0
    for row, own, hidden, nats in zip(tokens, rows, masked, token_nats(judge, rows), strict=True):
        if as_drawn:
            chosen = hidden.copy()
            lengths = np.diff([_size(tokenizer, row[:i]) for i in range(len(row) + 1)])
        else:
            lengths = judge.byte_lengths[own]
            ends = np.cumsum(lengths)
            edges = zip(*_edges(hidden), strict=True)
            places = [[_size(tokenizer, row[:i]) for i in edge] for edge in edges]
            chosen = np.any([(ends - lengths < b) & (ends > a) for a, b in places], axis=0)
        chosen[: judge.given] = False
        total += float(nats[chosen[judge.given :]].sum())
        count += int(chosen.sum())
        size += int(lengths[chosen].sum())
    return total, count, size


def _size(tokenizer: Tokenizer, tokens: np.ndarray) -> int:
    """Bytes of their text."""
    return len(tokenizer.decode(tokens).encode())
