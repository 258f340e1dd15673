"""Detokenisers: ordered substitutions that undo the tokenisation of public evaluation sets.

They are those that SEDD (Lou et al. 2023; its repository's data.py) and MDLM (Sahoo et al. 2024;
dataloader.py) apply. The two agree, oddities included: the order matters, a substitution does not
see what it has just written, and some patterns hardly ever occur. Each is a row of DETOKENISERS.
"""

import re
from collections.abc import Mapping, Sequence

Rule = tuple[re.Pattern[str], str]


def _rule(pattern: str, replacement: str) -> Rule:
    return re.compile(pattern), replacement


def _literal(text: str, replacement: str) -> Rule:
    return _rule(re.escape(text), replacement.replace("\\", r"\\"))


def _closed_up(marks: str) -> list[Rule]:
    """Removes the space before these marks where a space follows, too."""
    return [_literal(f" {mark} ", f"{mark} ") for mark in marks]


def _snug(pairs: str, inside: str) -> list[Rule]:
    """Removes the spaces just inside brackets and quotes.

    pairs: of marks, each an opening and a closing one. inside: pattern of the text between them,
    in which {0} and {1} stand for the two marks.
    """
    rules = []
    for pair in pairs.split():
        opening, closing = pair[0], pair[1]
        marks = re.escape(opening), re.escape(closing)
        pattern = marks[0] + inside.format(*marks) + marks[1]
        rules.append(_rule(pattern, rf"{opening}\1{closing}"))
    return rules


_PAIRS = "() [] {} \"\" ''"

_WIKITEXT = [
    _literal("s '", "s'"),
    _rule("/' [0-9]/", "/'[0-9]/"),  # the class is literal text, as published
    *[_literal(f" @{mark}@ ", mark) for mark in "-,."],
    *_closed_up(":;.!?,"),
    *_snug(_PAIRS, r"\s*([^{1}]*?)\s*"),
    *[_literal(" ".join("=" * n), "=" * n) for n in (4, 3, 2)],
    _literal(" ° ", "°"),
    _literal(" \n", "\n"),
    _literal("\n ", "\n"),
    _literal(" N ", " 1 "),
    _literal(" 's", "'s"),
]

_PTB = [
    _literal(" 's", "'s"),
    _literal("s ' ", "s' "),
    _literal(" n't", "n't"),
    _literal(" \n ", "\n"),
    _literal(r"\/", "/"),
    *[_literal(" N ", " 1 ")] * 2,  # neighbours share a space, so one pass misses half
    _literal("$ 1", "$1"),
    _literal("# 1", "#1"),
    _literal("<unk>", "?"),
]

_LM1B = [
    *[_literal(f"{scheme} : / / ", f"{scheme}://") for scheme in ("http", "https")],
    _rule(r" '(\w+)", r"'\1"),
    *[_rule(rf" (\w+) \.{end}", rf" \1.{last}") for end, last in ((" ", " "), ("$", ""))],
    *[r for m in "?!" for r in (*_closed_up(m), _rule(rf" \{m}$", m))],
    *_closed_up(",:;"),
    _literal(" / ", "/"),
    *_snug("\"\" ''", " ([^{0}]+) "),
    *_snug("() []", " ([^{0}{1}]+) "),
    _literal("$ ", "$"),
    _literal("£ ", "£"),
]

_LAMBADA = [
    _rule("[“”]", '"'),
    _rule(r"\A\s+|\s+\Z", ""),
    _rule(r"\A", "\n"),
]

DETOKENISERS: Mapping[str, Sequence[Rule]] = {
    "none": (),
    "wikitext": tuple(_WIKITEXT),
    "ptb": tuple(_PTB),
    "lm1b": tuple(_LM1B),
    "lambada": tuple(_LAMBADA),
    "scientific_papers": (*_WIKITEXT, *_LM1B),
}


def detokenise(name: str, text: str) -> str:
    """Applies the substitutions of a row of DETOKENISERS to a text, in order."""
    for pattern, replacement in DETOKENISERS[name]:
        text = pattern.sub(replacement, text)
    return text
