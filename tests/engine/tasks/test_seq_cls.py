"""Texts and their classes: encoded as the tokenizer does, cut from the longer end, losses and measures by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from adapterhub.engine.data import IGNORED
from adapterhub.engine.row_kinds import LabelledRow
from adapterhub.engine.tasks import task_engine
from adapterhub.spec.data import DataSpec
from tests.engine.tasks.tiny_bert import tiny_bert

pytestmark = pytest.mark.engine
TASK = task_engine("SEQ_CLS")
SPEC = DataSpec(train="r.jsonl")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert(tmp_path_factory.mktemp("bert")))


def row(text: str, label: str = "a", pair: str | None = None, line: int = 1) -> LabelledRow:
    return LabelledRow(place=f"r.jsonl:{line}", text=text, pair=pair, label=label)


def test_rows_keep_their_order_whether_they_are_pairs_or_not(tokenizer: Any) -> None:
    rows = [row("good", "b", "bad", 1), row("film", "a", None, 2), row("the", "a", "in", 3)]
    found = TASK.encode(rows, tokenizer, SPEC, max_length=16, labels=("a", "b"))
    assert [example.place for example in found.items] == ["r.jsonl:1", "r.jsonl:2", "r.jsonl:3"]
    assert tokenizer.decode(list(found.items[0].input_ids)) == "[CLS] good [SEP] bad [SEP]"
    assert found.items[0].token_type_ids == (0, 0, 0, 1, 1)  # type: ignore[attr-defined]
    assert found.items[0].labels == (IGNORED,) * 4 + (1,)
    assert [example.trained for example in found.items] == [1, 1, 1]
    assert TASK.labels(rows) == ("a", "b")


def test_of_two_texts_the_longer_one_is_cut(tokenizer: Any) -> None:
    rows = [row("good " * 9, "a", "bad film"), row("good", "a", line=2)]
    found = TASK.encode(rows, tokenizer, SPEC, max_length=8, labels=("a", "b"))
    assert tokenizer.decode(list(found.items[0].input_ids)) == "[CLS] good good good [SEP] bad film [SEP]"
    assert found.truncated == ("r.jsonl:1",)
    assert len(found.items[1].input_ids) == 3


def test_losses_and_probabilities_are_those_of_the_logits(tokenizer: Any) -> None:
    import torch

    rows = [row("good", "b"), row("film film", "a")]
    found = TASK.encode(rows, tokenizer, SPEC, max_length=16, labels=("a", "b"))
    batch = TASK.collate(found.items, pad_id=0)
    assert batch["input_ids"].shape == (2, 4) and batch["labels"].tolist() == [1, 0]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    logits = torch.tensor([[0.0, 1.0], [2.0, 0.0]])

    def model(**given: Any) -> Any:
        assert set(given) == {"input_ids", "attention_mask", "token_type_ids"}
        return SimpleNamespace(logits=logits)

    judged = TASK.judge(model, batch)
    expected = -logits.log_softmax(-1)[[0, 1], [1, 0]]
    assert torch.allclose(judged.losses, expected) and judged.counts.tolist() == [1, 1]
    assert [sum(values) for values in judged.predictions] == [pytest.approx(1), pytest.approx(1)]
    assert TASK.scores(judged.predictions, found.items, ("a", "b"))["accuracy"] == 1.0


def test_measures_beside_those_of_the_most_frequent_class(tokenizer: Any) -> None:
    labels = ("a", "b")
    truth = TASK.encode([row("x", label) for label in "aab"], tokenizer, SPEC, max_length=16, labels=labels).items
    scores = TASK.scores([(0.9, 0.1), (0.2, 0.8), (0.3, 0.7)], truth, labels)
    # One of two a, and the b, are found; b is told twice.
    assert scores["accuracy"] == scores["f1_micro"] == pytest.approx(2 / 3)
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    naive = TASK.naive_scores(truth, truth, labels)
    assert naive["accuracy"] == pytest.approx(2 / 3)
    assert naive["matthews"] == naive["f1"] == 0.0
