"""Spans of tags: which words belong together, and how many of them a model finds.

Prefixed tags are read as conlleval (https://www.clips.uantwerpen.be/conll2000/chunking/output.html) and the seqeval
library in its default mode read them: a tag that goes on from nothing begins a span.
"""

from __future__ import annotations

from collections.abc import Sequence

# In BILOU, L ends a span and U is one.
_PREFIXES = {"B": "B", "I": "I", "E": "E", "S": "S", "L": "E", "U": "S", "O": "O"}
_OUTSIDE = "O"

Span = tuple[str, int, int]


def is_prefixed(labels: Sequence[str]) -> bool:
    """Say whether tags are of IOB2, IOBES or BILOU (`B-LOC`, `I-LOC`, `O`), and not names of what a word is."""
    told = [label for label in labels if label != _OUTSIDE]
    return bool(told) and all(label[0] in _PREFIXES and (len(label) == 1 or label[1] == "-") for label in told)


def spans(tags: Sequence[str], *, prefixed: bool) -> list[Span]:
    """Return the spans of one row's tags: name, first word, and the word after the last.

    Without prefixes, neighbours of the same tag are one span, and `O` is none.
    """
    found: list[Span] = []
    begin, before, name = 0, _OUTSIDE, ""
    for index, tag in enumerate((*tags, _OUTSIDE)):
        mark, kind = _read(tag) if prefixed else (_OUTSIDE if tag == _OUTSIDE else "I", tag)
        goes_on = before in "BI" and mark in "IE" and kind == name
        if before != _OUTSIDE and not goes_on:
            found.append((name, begin, index))
        if mark != _OUTSIDE and not goes_on:
            begin = index
        before, name = mark, kind
    return found


def _read(tag: str) -> tuple[str, str]:
    return _PREFIXES.get(tag[:1], _OUTSIDE), tag[2:]


def span_counts(truth: Sequence[str], told: Sequence[str], *, prefixed: bool) -> tuple[int, int, int]:
    """Return of one row how many spans were rightly told, told, and there; right is one of the same words and name."""
    there, said = set(spans(truth, prefixed=prefixed)), set(spans(told, prefixed=prefixed))
    return len(there & said), len(said), len(there)
