"""Pairs: in-batch negatives counted out, what is excluded from them, retrieval by brute force, and scores."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine.row_kinds import PairRow
from adapterhub.engine.tasks import feature_extraction, task_engine
from adapterhub.errors import InvalidFileError
from adapterhub.spec.data import DataSpec
from tests.engine.tasks.tiny_bert import tiny_bert

pytestmark = pytest.mark.engine
TASK = task_engine("FEATURE_EXTRACTION")
SPEC = DataSpec(train="r.jsonl")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoModel, AutoTokenizer

    folder: Path = tiny_bert(tmp_path_factory.mktemp("bert"))
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def row(anchor: str, positive: str, negative: str | None = None, score: float | None = None, line: int = 1) -> PairRow:
    return PairRow(place=f"r.jsonl:{line}", prompt=anchor, text=positive, negative=negative, score=score)


def vector(base: Any, text: str) -> Any:
    import torch

    model, tokenizer = base
    with torch.inference_mode():
        states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
    return states / states.norm()


def judged(base: Any, rows: list[PairRow]) -> tuple[Any, Any, Any]:
    import torch

    examples = TASK.encode(rows, base[1], SPEC, max_length=64).items
    batch = TASK.collate(examples, pad_id=0)
    with torch.inference_mode():
        return TASK.judge(base[0], batch), examples, batch


def test_the_loss_is_that_of_the_positive_among_all_texts_of_the_batch(base: Any) -> None:
    rows = [row("good", "film in rome", "bad"), row("anna", "met", line=2)]
    found, _, batch = judged(base, rows)
    assert batch["input_ids"].shape[0] == 5
    candidates = [vector(base, text) for text in ("film in rome", "met", "bad")]
    for index, anchor in enumerate(("good", "anna")):
        near = [20 * float(vector(base, anchor) @ candidate) for candidate in candidates]
        expected = math.log(sum(math.exp(value) for value in near)) - near[index]
        assert float(found.losses[index]) == pytest.approx(expected, abs=1e-4)


def test_what_belongs_to_an_anchor_as_well_is_no_negative_of_it(base: Any) -> None:
    rows = [row("good", "film"), row("good", "met", line=2), row("bad", "film", "met", line=3)]
    _, _, batch = judged(base, rows)
    # Candidates: film, met, film, and the third row's negative, met.
    assert batch["excluded"].tolist() == [
        [False, True, True, True],
        [True, False, True, True],
        [True, False, False, False],
    ]


def test_retrieval_is_counted_over_all_held_out_texts(base: Any) -> None:
    texts = [("good", "film"), ("bad", "rome"), ("anna", "met"), ("good", "in")]
    rows = [row(anchor, positive, line=line) for line, (anchor, positive) in enumerate(texts, start=1)]
    found, examples, _ = judged(base, rows)
    ranks = []
    for anchor, _ in texts:
        near = {positive: float(vector(base, anchor) @ vector(base, positive)) for _, positive in texts}
        own = max(near[positive] for other, positive in texts if other == anchor)
        wrong = [value for positive, value in near.items() if (anchor, positive) not in texts]
        ranks.append(1 + sum(value > own for value in wrong))
    scores = TASK.scores(found.predictions, examples, ())
    assert scores["mrr"] == pytest.approx(sum(1 / rank for rank in ranks) / 4)
    assert scores["accuracy_at_1"] == sum(rank == 1 for rank in ranks) / 4
    parts = TASK.main_measure(found.predictions, examples, ()).parts  # type: ignore[attr-defined]
    assert [part[0] for part in parts] == pytest.approx([1 / rank for rank in ranks])


def test_rows_with_scores_learn_their_cosines(base: Any) -> None:
    rows = [row("good", "film", score=0.5), row("bad", "rome in", score=-1.0, line=2), row("a", "b", score=1, line=3)]
    found, examples, _ = judged(base, rows)
    cosines = [float(vector(base, r.prompt) @ vector(base, r.text)) for r in rows]
    expected = [(cosine - float(r.score or 0)) ** 2 for cosine, r in zip(cosines, rows, strict=True)]
    assert found.losses.tolist() == pytest.approx(expected, abs=1e-5)
    order = sorted(range(3), key=cosines.__getitem__)
    theirs = [1, 0, 2]
    distance = sum((order.index(i) - theirs.index(i)) ** 2 for i in range(3))
    assert TASK.scores(found.predictions, examples, ())["spearman"] == pytest.approx(1 - 6 * distance / (3 * 8))


def test_ranks_that_are_shared_have_their_mean() -> None:
    import numpy as np

    # By hand: ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4.
    found = feature_extraction._spearman(np.array([1.0, 2.0, 2.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert found == pytest.approx(4.5 / math.sqrt(4.5 * 5))
    assert feature_extraction._spearman(np.array([1.0, 1.0]), np.array([1.0, 2.0])) == 0.0


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([row("a", "b", score=4.0)], "not from -1 to 1"),
        ([row("a", "b", score=0.4), row("a", "c", line=2)], "r.jsonl:2: has no score, and r.jsonl:1 has one"),
    ],
)
def test_scores_that_no_cosine_can_have_and_rows_without(base: Any, rows: list[PairRow], fault: str) -> None:
    with pytest.raises(InvalidFileError, match=fault):
        TASK.encode(rows, base[1], SPEC, max_length=64)
