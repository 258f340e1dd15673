"""Quality of generated text: its perplexity under a judge, with its entropy and repetition.

Low precision, low temperature and greedy unmasking make text plain, and plain text has a low
perplexity. So a perplexity is never shown here without the entropy and the repetition.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np

from ddm_jax.errors import UserError
from ddm_jax.evaluation.judges.judge import Judge, judge_texts
from ddm_jax.evaluation.samples.repetition import longest_repeat, repeated, unigram_entropy
from ddm_jax.evaluation.text_scores import distinct
from ddm_jax.generation.candidates import self_bleu
from ddm_jax.wording import columns

SELF_BLEU_TEXTS = 50  # all pairs of them are compared
Quality = Mapping[str, float | int | str]

# columns of the table: heading, name of the number, format
_COLUMNS = (
    ("judge's perplexity", "perplexity", ".4g"),
    ("bits per byte", "bits_per_byte", ".3f"),
    ("entropy, nats", "entropy", ".2f"),
    ("repeated 4-grams", "repeated_4grams", ".3f"),
    ("longest repeat", "longest_repeat", ".1f"),
    ("dist-1", "distinct_1", ".3f"),
    ("dist-2", "distinct_2", ".3f"),
    ("self-BLEU", "self_bleu", ".1f"),
    ("tokens", "tokens", ".0f"),
)


def measure_quality(
    texts: Sequence[str],
    tokens: Sequence[np.ndarray] | None = None,
    judge: Judge | None = None,
    fingerprint: str = "",
) -> dict[str, float | int | str]:
    """The numbers of some texts; compare them between equal amounts of text only.

    Args:
      texts: one or more.
      tokens: int[n_i] of each text, for entropy, repetition and length; by default the judge's.
      judge: None leaves its numbers out.
      fingerprint: of the tokenizer of `tokens`. If it is that of the judge's tokenizer, the tokens
        are judged as they were drawn; otherwise the judge encodes the texts itself.

    Returns:
      texts; means over texts of entropy (nats), repeated_4grams (0 to 1), longest_repeat, tokens
      and words; distinct_1, _2 and _3 of all words together; self_bleu (percent) of the first 50
      texts; with a judge Judgement.metrics, `judge` and `judged`, the tokens that it was shown.

    Raises:
      UserError: there are no texts, neither tokens nor a judge, or nothing to judge.
    """
    if not texts:
        raise UserError("There are no texts to score: give at least one.")
    if tokens is not None:
        own = tokens
    elif judge is not None:
        own = [judge.encode(text) for text in texts]
    else:
        raise UserError("Texts without tokens need a judge, whose tokens are counted: give one.")
    diversity = self_bleu([list(texts[:SELF_BLEU_TEXTS])])
    found: dict[str, float | int | str] = {
        "texts": len(texts),
        "tokens": fmean([len(row) for row in own]),
        "words": fmean([len(text.split()) for text in texts]),
        "entropy": fmean([unigram_entropy(row) for row in own]),
        "repeated_4grams": fmean([repeated(row) for row in own]),
        "longest_repeat": fmean([longest_repeat(row) for row in own]),
        **{f"distinct_{n}": distinct(texts, n) for n in (1, 2, 3)},
        **({} if diversity is None else {"self_bleu": diversity}),
    }
    if judge is None:
        return found
    as_drawn = tokens is None or (bool(fingerprint) and fingerprint == judge.fingerprint)
    judgement = judge_texts(judge, texts, own if as_drawn else None)
    judged = "the tokens as drawn" if as_drawn and tokens is not None else "the text, encoded anew"
    return found | judgement.metrics() | {"judge": judge.name, "judged": judged}


def quality_table(rows: Mapping[str, Quality]) -> str:
    """Columns of text with a row for each name; perplexity and entropy stand side by side."""
    shown = [c for c in _COLUMNS if any(c[1] in row for row in rows.values())]
    lines = [["", *(heading for heading, _, _ in shown)]]
    for title, row in rows.items():
        lines.append([title, *(_cell(row.get(name), form) for _, name, form in shown)])
    return columns(lines)


def _cell(value: float | int | str | None, form: str) -> str:
    known = isinstance(value, int | float) and not math.isnan(value)
    return format(value, form) if known else "-"
