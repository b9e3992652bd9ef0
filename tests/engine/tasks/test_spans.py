"""Spans of tags: the cases of conlleval and seqeval by hand, and a second reading of them by another way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.engine.tasks._spans import is_prefixed, span_counts, spans

CASES = (
    ("B-P I-P O B-L", [("P", 0, 2), ("L", 3, 4)]),
    ("I-P I-P O I-L", [("P", 0, 2), ("L", 3, 4)]),  # what goes on from nothing begins
    ("B-P I-L", [("P", 0, 1), ("L", 1, 2)]),  # and from a span of another name
    ("B-P B-P I-P", [("P", 0, 1), ("P", 1, 3)]),
    ("S-P B-L I-L E-L", [("P", 0, 1), ("L", 1, 4)]),
    ("U-P B-L I-L L-L", [("P", 0, 1), ("L", 1, 4)]),
    ("B-P E-P E-P I-P", [("P", 0, 2), ("P", 2, 3), ("P", 3, 4)]),
    ("S-P I-P", [("P", 0, 1), ("P", 1, 2)]),
    ("B I O B", [("", 0, 2), ("", 3, 4)]),
    ("B-first-name I-first-name", [("first-name", 0, 2)]),
    ("O O", []),
)


@pytest.mark.parametrize(("tags", "expected"), CASES)
def test_prefixed_tags(tags: str, expected: list[tuple[str, int, int]]) -> None:
    assert spans(tags.split(), prefixed=True) == expected


def test_plain_tags_are_spans_of_like_neighbours() -> None:
    assert spans(["Street", "Street", "City", "O", "City"], prefixed=False) == [
        ("Street", 0, 2),
        ("City", 2, 3),
        ("City", 4, 5),
    ]
    # A plain tag that begins with a letter of the prefixes is none of them.
    assert not is_prefixed(("O", "Building", "B-LOC"))
    assert is_prefixed(("O", "B-LOC", "I-LOC")) and is_prefixed(("B", "I", "O"))
    assert not is_prefixed(("O",))


def test_a_span_is_right_when_words_and_name_are() -> None:
    truth, told = ["B-P", "I-P", "O", "B-L"], ["B-P", "I-P", "O", "B-P"]
    assert span_counts(truth, told, prefixed=True) == (1, 2, 2)
    assert span_counts(truth, ["B-P", "O", "O", "B-L"], prefixed=True) == (1, 2, 2)


def by_conlleval(tags: list[str]) -> list[tuple[str, int, int]]:
    """Read spans by conlleval's two tables: where a chunk ends, and where one begins."""
    found, begin = [], None
    before, name = "O", ""
    for index, tag in enumerate([*tags, "O"]):
        mark, kind = tag[0], tag[2:]
        ends = (before, mark) in {("B", "B"), ("B", "S"), ("B", "O"), ("I", "B"), ("I", "S"), ("I", "O")}
        ends = ends or before in "ES" or (before != "O" and kind != name)
        starts = mark in "BS" or (before, mark) in {(a, b) for a in "ESO" for b in "EI"}
        starts = starts or (mark != "O" and kind != name)
        if ends and begin is not None:
            found.append((name, begin, index))
            begin = None
        if starts:
            begin = index
        before, name = mark, kind
    return found


@given(st.lists(st.sampled_from(["O", *(f"{mark}-{name}" for mark in "BIES" for name in "LP")]), max_size=9))
def test_any_tags_are_read_as_conlleval_reads_them(tags: list[str]) -> None:
    assert spans(tags, prefixed=True) == by_conlleval(tags)
