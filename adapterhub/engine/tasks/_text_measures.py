"""Measures of written text against a reference: exact match, chrF, ROUGE-L, and SQuAD's F1 of an answer's words.

The libraries that have them bring parsers and corpora along; the tests hold these against the figures of sacrebleu
2.6.0, rouge-score 0.1.2 and SQuAD's own script.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_CHARACTERS = 6
_BETA = 2.0
_WORD = re.compile(r"\w+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def chrf(told: Sequence[str], truth: Sequence[str]) -> float:
    """Return chrF2 of a whole set of texts, 0 to 1: F of n-grams of 1 to 6 characters, recall counting double.

    Popović 2015, https://aclanthology.org/W15-3049; blanks do not count, and orders that neither side has are left
    out, as sacrebleu does by default.
    """
    right, said, there = ([0] * _CHARACTERS for _ in range(3))
    for one, other in zip(told, truth, strict=True):
        ours, theirs = "".join(one.split()), "".join(other.split())
        for order in range(_CHARACTERS):
            found, wanted = _grams(ours, order + 1), _grams(theirs, order + 1)
            if wanted:  # n-grams that no reference has are not held against a text
                said[order] += found.total()
            there[order] += wanted.total()
            right[order] += (found & wanted).total()
    orders = [order for order in range(_CHARACTERS) if said[order] and there[order]]
    if not orders:
        return 0.0
    precision = sum(right[order] / said[order] for order in orders) / len(orders)
    recall = sum(right[order] / there[order] for order in orders) / len(orders)
    weight = _BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall) if precision + recall else 0.0


def _grams(text: str, size: int) -> Counter[str]:
    return Counter(text[start : start + size] for start in range(len(text) - size + 1))


def rouge_l(told: str, truth: str) -> float:
    """Return ROUGE-L, 0 to 1: F1 by the longest common subsequence of words, in small letters, without stemming.

    Lin 2004, https://aclanthology.org/W04-1013, section 3, with β = 1. A word is a run of letters and digits.
    """
    ours, theirs = _WORD.findall(told.lower()), _WORD.findall(truth.lower())
    common = _longest_common(ours, theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    row = [0] * (len(other) + 1)
    for word in one:
        before = 0
        for place, candidate in enumerate(other, start=1):
            kept = row[place]
            row[place] = before + 1 if word == candidate else max(kept, row[place - 1])
            before = kept
    return row[-1]


def exact(told: str, truth: str) -> bool:
    """Say whether two texts are the same but for blanks."""
    return told.split() == truth.split()


def plain_answer(text: str) -> str:
    """Return an answer as SQuAD compares it: small letters, no punctuation, no English articles, single blanks.

    https://rajpurkar.github.io/SQuAD-explorer (evaluate-v2.0.py, normalize_answer).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_exact(told: str, truth: Sequence[str]) -> float:
    """Return 1 where an answer is one of the right ones, else 0; no right ones: the empty one is."""
    return float(any(plain_answer(told) == plain_answer(text) for text in _right(truth)))


def answer_f1(told: str, truth: Sequence[str]) -> float:
    """Return SQuAD's F1 of an answer's words with the right answer that is nearest."""
    return max(_words_f1(plain_answer(told).split(), plain_answer(text).split()) for text in _right(truth))


def _right(truth: Sequence[str]) -> Sequence[str]:
    # As SQuAD's script: an answer of which nothing is left counts as none.
    return [text for text in truth if plain_answer(text)] or [""]


def _words_f1(told: Sequence[str], truth: Sequence[str]) -> float:
    if not told or not truth:
        return float(told == truth)
    return 2 * (Counter(told) & Counter(truth)).total() / (len(told) + len(truth))
