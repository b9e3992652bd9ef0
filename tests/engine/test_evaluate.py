"""Held-out losses row by row, and the paired bootstrap on numbers whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adapterhub.engine.data import pad
from adapterhub.engine.evaluate import RowLosses, compare, row_losses
from adapterhub.progress import SILENT
from tests.engine.tiny import Recorder, examples, load
from tests.factory import tiny_llama


def losses(sums: list[float], counts: list[float] | None = None, questions: list[str] | None = None) -> RowLosses:
    return RowLosses(
        sums=np.array(sums),
        counts=np.array(counts or [10.0] * len(sums)),
        questions=tuple(questions or [str(i) for i in range(len(sums))]),
    )


def test_means_weigh_tokens_not_rows() -> None:
    found = compare(losses([10, 90], [10, 30]), losses([5, 65], [10, 30]), samples=100, seed=0)
    assert (found.rows, found.tokens) == (2, 40)
    assert (found.loss_base, found.loss) == (100 / 40, 70 / 40)
    assert found.reduction == pytest.approx(0.3)


def test_an_even_gain_has_no_spread_and_no_gain_none() -> None:
    before = losses([10, 20, 35])
    even = compare(before, losses([8, 16, 28]), samples=500, seed=0)
    assert (even.low, even.high) == (pytest.approx(0.2), pytest.approx(0.2))
    same = compare(before, before, samples=500, seed=0)
    assert (same.reduction, same.low, same.high) == (0, 0, 0)


def test_the_interval_is_the_normal_one_for_many_rows() -> None:
    """1,000 rows of loss 10 lowered by 2 ± 1: the mean's standard error is 0.1/√1000 of the base's loss."""
    generator = np.random.default_rng(0)
    gains = generator.normal(2, 1, 1000)
    found = compare(losses([10.0] * 1000), losses(list(10 - gains)), samples=4000, seed=1)
    half = 1.96 * gains.std() / 10 / np.sqrt(1000)
    assert found.low == pytest.approx(found.reduction - half, abs=0.1 * half)
    assert found.high == pytest.approx(found.reduction + half, abs=0.1 * half)


def test_the_interval_depends_on_the_seed_alone() -> None:
    gains = np.random.default_rng(0).normal(2, 1, 40)
    before, after = losses([10.0] * 40), losses(list(10 - gains))
    first = compare(before, after, samples=300, seed=5)
    assert compare(before, after, samples=300, seed=5) == first
    assert compare(before, after, samples=300, seed=6) != first


def test_rows_that_share_a_question_are_one_piece_of_evidence() -> None:
    """Each row copied ten times says no more than once, so the interval is the same and not a third as wide."""
    before, after, names = [10, 20, 30, 40], [9, 11, 29, 15], list("abcd")
    single = compare(losses(before, questions=names), losses(after, questions=names), samples=1000, seed=0)
    copied = compare(
        losses(before * 10, questions=names * 10), losses(after * 10, questions=names * 10), samples=1000, seed=0
    )
    assert (copied.low, copied.high) == (pytest.approx(single.low), pytest.approx(single.high))
    apart = compare(losses(before * 10), losses(after * 10), samples=1000, seed=0)
    assert apart.high - apart.low < 0.5 * (single.high - single.low)


def test_metrics_are_finite_numbers_by_their_recorded_names() -> None:
    metrics = compare(losses([10, 20]), losses([5, 16]), samples=100, seed=0).metrics()
    assert set(metrics) == {
        "eval_rows", "eval_tokens", "eval_loss_base", "eval_loss", "eval_loss_reduction",
        "eval_loss_reduction_low", "eval_loss_reduction_high",
    }  # fmt: skip
    assert metrics["eval_loss_reduction"] == 0.3
    assert all(isinstance(value, float) for value in metrics.values())


@pytest.mark.engine
def test_a_row_s_loss_is_transformers_own(tmp_path: Path) -> None:
    import torch

    base = load(tiny_llama(tmp_path / "base"))
    rows, recorder = examples(base), Recorder.new()
    base.model.train()
    found = row_losses(
        base.model,
        rows,
        batch_size=3,
        pad_id=0,
        device=base.device,
        dtype=base.dtype,
        label="held-out rows",
        progress=recorder,
    )
    assert base.model.training
    assert recorder.steps == len(rows)
    with torch.no_grad():
        for index, row in enumerate(rows):
            assert found.counts[index] == row.trained
            own = base.model(**pad([row], pad_id=0)).loss.item()
            assert found.sums[index] == pytest.approx(own * row.trained, rel=1e-5)
    other = row_losses(
        base.model, rows, batch_size=7, pad_id=5, device=base.device, dtype=base.dtype, label="", progress=SILENT
    )
    assert other.sums == pytest.approx(found.sums, rel=1e-5)
