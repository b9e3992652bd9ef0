"""Measures of classes against their definitions, counted out; the interval of a measure on numbers known before."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.engine.evaluate import interval
from adapterhub.engine.tasks import RowParts
from adapterhub.engine.tasks._classes import ClassExample, accuracy, f1_macro, matthews, most_frequent, ordered

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20)


def counted(pairs: list[tuple[int, int]], name: int) -> tuple[int, int, int]:
    """Count true positives, false positives and false negatives of a class."""
    right = sum(a == b == name for a, b in pairs)
    return right, sum(a != name and b == name for a, b in pairs), sum(a == name and b != name for a, b in pairs)


@given(PAIRS)
def test_f1_and_accuracy_by_their_definitions(pairs: list[tuple[int, int]]) -> None:
    truth, told = [a for a, _ in pairs], [b for _, b in pairs]
    of_each = []
    for name in set(truth) | set(told):
        right, wrongly, missed = counted(pairs, name)
        precision = right / (right + wrongly) if right + wrongly else 0.0
        recall = right / (right + missed) if right + missed else 0.0
        of_each.append(2 * precision * recall / (precision + recall) if precision + recall else 0.0)
    assert f1_macro(truth, told) == pytest.approx(sum(of_each) / len(of_each))
    assert accuracy(truth, told) == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))


@given(PAIRS)
def test_matthews_is_the_correlation_of_the_indicators(pairs: list[tuple[int, int]]) -> None:
    """Covariances of one-hot rows, summed over classes, as Gorodkin has them."""
    one_hot = np.eye(4)
    truth, told = one_hot[[a for a, _ in pairs]], one_hot[[b for _, b in pairs]]
    centred = truth - truth.mean(0), told - told.mean(0)
    both, of_truth, of_told = ((x * y).sum() for x, y in (centred, (centred[0],) * 2, (centred[1],) * 2))
    expected = both / math.sqrt(of_truth * of_told) if of_truth * of_told > 1e-12 else 0.0
    assert matthews([a for a, _ in pairs], [b for _, b in pairs]) == pytest.approx(expected, abs=1e-9)


def test_the_order_of_labels() -> None:
    assert ordered(["b", "a", "b"]) == ("a", "b")
    assert ordered(["10", "9", "-1"]) == ("-1", "9", "10")
    assert ordered(["I-LOC", "B-LOC", "O"]) == ("O", "B-LOC", "I-LOC")


def test_the_most_frequent_class_and_of_equals_the_first() -> None:
    def example(*labels: int) -> ClassExample:
        return ClassExample(place="", question="", input_ids=(1,) * len(labels), labels=labels)

    assert most_frequent([example(2, -100, 2), example(0), example(0)]) == 0
    assert most_frequent([example(2), example(1), example(2)]) == 2


def test_the_interval_of_a_share_is_the_normal_one_for_many_rows() -> None:
    right = np.random.default_rng(0).random(2000) < 0.8
    parts = RowParts.mean("accuracy", list(map(float, right))).parts
    low, high = interval([str(i) for i in range(2000)], parts, samples=4000, seed=1)
    half = 1.96 * math.sqrt(right.mean() * (1 - right.mean()) / 2000)
    assert low == pytest.approx(right.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(right.mean() + half, abs=0.1 * half)


def test_the_interval_takes_rows_that_share_a_question_as_one() -> None:
    parts = [(float(i % 3 == 0), 1.0) for i in range(30)]
    alone = interval([str(i) for i in range(30)], parts, samples=500, seed=0)
    copied = interval([str(i // 10) for i in range(300)], [parts[i // 10] for i in range(300)], samples=500, seed=0)
    assert copied[1] - copied[0] == pytest.approx(alone[1] - alone[0], rel=0.1)


def test_the_interval_is_of_a_ratio_of_sums_and_not_of_a_mean_of_ratios() -> None:
    assert interval(["a", "b"], [(1.0, 1.0), (1.0, 3.0)], samples=500, seed=0) == (pytest.approx(1 / 3), 1.0)
    assert interval(["a"], [(0.0, 0.0)], samples=100, seed=0) == (0.0, 0.0)
