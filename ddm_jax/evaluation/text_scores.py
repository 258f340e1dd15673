"""Scores of generated text against references, and of candidates against each other.

BLEU (Papineni et al. 2002) and chrF (Popović 2015) are sacrebleu's (Post 2018, arXiv:1804.08771),
ROUGE-L (Lin 2004) is rouge-score's. Percentages run from 0 to 100.
"""

from collections.abc import Iterator, Sequence
from statistics import fmean

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.bleu import BLEUScore

from ddm_jax.errors import UserError
from ddm_jax.generation.candidates import check_some, self_bleu
from ddm_jax.wording import counted


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
    """Corpus BLEU of order 4, one reference each: percent, and sacrebleu's signature.

    Words are those of the 13a tokenisation, and case counts. Chinese, Japanese or Thai text has
    few and long words: use chrF for it. Text that is tokenised already is not detokenised first, so
    that its score compares only with that of other such text. An empty hypothesis has no match and
    is short. 0 where no word matches, and where no hypothesis has four words.

    Raises:
      UserError: there are no texts, or not as many references.
    """
    score, signature = _corpus_bleu(hypotheses, references)
    return score.score, signature


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Corpus chrF2, percent: F score of character n-grams up to 6, recall counting twice.

    White space does not count. It does not depend on words, and so fits any script.

    Raises:
      UserError: as `bleu`.
    """
    _check(hypotheses, references)
    return CHRF().corpus_score(hypotheses, [references]).score


def rouge_l(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Mean over pairs of ROUGE-L's F1, percent: longest common subsequence of words, no stemmer.

    Words are runs of the letters a-z and digits of the text in lower case. All other characters
    separate words: "für" is "f" and "r", and text of another script has no words. A pair in which
    one side has no words scores 0, whatever the other side is: use chrF for such languages.

    Raises:
      UserError: as `bleu`.
    """
    from rouge_score import rouge_scorer, tokenizers  # imports nltk, which takes a second

    _check(hypotheses, references)
    tokenizer = tokenizers.DefaultTokenizer(use_stemmer=False)
    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=tokenizer)
    pairs = zip(references, hypotheses, strict=True)
    return 100 * fmean([scorer.score(*pair)["rougeL"].fmeasure for pair in pairs])


def distinct(texts: Sequence[str], n: int) -> float:
    """dist-n: distinct n-grams over all n-grams, of all texts together, from 0 to 1.

    Words are separated by white space (Li et al. 2016, arXiv:1510.03055). It falls as text is
    added: compare equal amounts of text. 0 where no text has n words.

    Raises:
      UserError: there are no texts.
    """
    check_some(texts)
    ngrams = [gram for text in texts for gram in _ngrams(text, n)]
    return len(set(ngrams)) / max(len(ngrams), 1)


def scores(
    hypotheses: Sequence[str],
    references: Sequence[str],
    candidates: Sequence[Sequence[str]] | None = None,
) -> dict[str, float | str]:
    """All scores of this file by name.

    Args:
      hypotheses: the generated texts.
      references: one for each.
      candidates: those that each hypothesis was chosen from.

    Returns:
      bleu, bleu_signature, chrf, rouge_l; distinct_1 and distinct_2 of the hypotheses;
      length_ratio, words (13a) of the hypotheses over those of the references, 0 where these have
      none; self_bleu, where some source has two candidates.

    Raises:
      UserError: as `bleu`.
    """
    score, signature = _corpus_bleu(hypotheses, references)
    found: dict[str, float | str] = {
        "bleu": score.score,
        "bleu_signature": signature,
        "chrf": chrf(hypotheses, references),
        "rouge_l": rouge_l(hypotheses, references),
        "distinct_1": distinct(hypotheses, 1),
        "distinct_2": distinct(hypotheses, 2),
        "length_ratio": float(score.ratio),
    }
    diversity = self_bleu(candidates or [])
    return found if diversity is None else found | {"self_bleu": diversity}


def _corpus_bleu(hypotheses: Sequence[str], references: Sequence[str]) -> tuple[BLEUScore, str]:
    _check(hypotheses, references)
    metric = BLEU(force=True)  # does not warn of text that is tokenised already
    score = metric.corpus_score(hypotheses, [references])
    return score, str(metric.get_signature())


def _ngrams(text: str, n: int) -> Iterator[tuple[str, ...]]:
    words = text.split()
    return zip(*(words[i:] for i in range(n)), strict=False)


def _check(hypotheses: Sequence[str], references: Sequence[str]) -> None:
    check_some(hypotheses)
    if len(hypotheses) != len(references):
        raise UserError(
            f"There are {counted(len(hypotheses), 'text')} and "
            f"{counted(len(references), 'reference')}: give one reference for each text."
        )
