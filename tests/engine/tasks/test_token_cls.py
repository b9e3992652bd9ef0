"""Words and their tags: each word's first token has its tag, whatever the tokenizer makes of the word."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adapterhub.engine.data import IGNORED, Examples
from adapterhub.engine.row_kinds import TaggedRow
from adapterhub.engine.tasks import task_engine
from adapterhub.errors import BuildError, IncompatibleError
from adapterhub.spec.data import DataSpec
from tests.engine.tasks.tiny_bert import tiny_bert
from tests.factory import write_tokenizer

pytestmark = pytest.mark.engine
TASK = task_engine("TOKEN_CLS")
LABELS = ("O", "B-LOC", "I-LOC")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_bert(tmp_path_factory.mktemp("bert")))


def row(text: str, tags: str) -> TaggedRow:
    return TaggedRow(place="r.jsonl:1", text=text, tokens=tuple(text.split(" ")), tags=tuple(tags.split(" ")))


def encode(tokenizer: Any, *rows: TaggedRow, max_length: int = 32) -> Examples:
    return TASK.encode(rows, tokenizer, DataSpec(train="r.jsonl"), max_length=max_length, labels=LABELS)


def labelled(found: Examples, tokenizer: Any) -> list[tuple[str, str]]:
    (example,) = found.items
    pairs = zip(tokenizer.convert_ids_to_tokens(list(example.input_ids)), example.labels, strict=True)
    return [(token, LABELS[label]) for token, label in pairs if label != IGNORED]


def test_the_first_piece_of_a_word_has_its_tag(tokenizer: Any) -> None:
    found = encode(tokenizer, row("in romes xyz", "O B-LOC I-LOC"))
    assert labelled(found, tokenizer) == [("in", "O"), ("rome", "B-LOC"), ("x", "I-LOC")]
    # As the tokenizer itself counts words that are given one by one.
    given = tokenizer([["in", "romes", "xyz"]], is_split_into_words=True)
    assert tuple(given.input_ids[0]) == found.items[0].input_ids
    firsts = [i for i, word in enumerate(given.word_ids(0)) if word is not None and word not in given.word_ids(0)[:i]]
    assert [i for i, label in enumerate(found.items[0].labels) if label != IGNORED] == firsts
    assert TASK.labels([row("in rome", "O B-LOC")]) == ("O", "B-LOC")


@pytest.mark.parametrize("trimmed", [True, False])
def test_tokens_that_bring_the_blank_before_along(tmp_path: Path, trimmed: bool) -> None:
    """Byte-level tokenizers, whose first token of a row is of its first word: no mark comes before."""
    import json

    from transformers import AutoTokenizer

    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    merged = {"Ġ": 32, "r": ord("r")}
    assert data["model"]["vocab"]["Ġ"] == merged["Ġ"]
    # One merge, so that a blank and the letter after it are one token.
    data["model"]["vocab"]["Ġr"] = 300
    data["model"]["merges"] = [["Ġ", "r"]]
    data["pre_tokenizer"]["trim_offsets"] = trimmed
    data["post_processor"] = {**data["pre_tokenizer"]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    found = encode(tokenizer, row("in rom é", "O B-LOC I-LOC"))
    expected = [("i", "O"), ("Ġr", "B-LOC")]
    assert labelled(found, tokenizer)[:2] == expected
    # The third word's blank is a token of its own, and no word's.
    assert [label for label in found.items[0].labels if label != IGNORED] == [0, 1, 2]
    assert found.items[0].trained == 3
    assert TASK.collate(found.items, pad_id=256)["labels"][0, 0] == 0


def test_words_beyond_the_cut_are_not_asked_for(tokenizer: Any) -> None:
    found = encode(tokenizer, row("in rome in rome", "O B-LOC O B-LOC"), max_length=4)
    assert labelled(found, tokenizer) == [("in", "O"), ("rome", "B-LOC")]
    assert found.truncated == ("r.jsonl:1",)
    assert tokenizer.decode(list(found.items[0].input_ids)).endswith("[SEP]")
    with pytest.raises(BuildError, match="no row has a word within its first 2 tokens"):
        encode(tokenizer, row("in rome", "O B-LOC"), max_length=2)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="does not tell which characters"):
        encode(SimpleNamespace(is_fast=False), row("in", "O"))


def test_losses_counts_and_predictions_row_by_row(tokenizer: Any) -> None:
    import torch

    found = encode(tokenizer, row("rome", "B-LOC"), row("in romes in", "O B-LOC O"))
    batch = TASK.collate(found.items, pad_id=0)
    logits = torch.nn.functional.one_hot(batch["labels"].clamp(min=0), 3).float() * 4
    logits[1, 1] = torch.tensor([0.0, 5.0, 0.0])  # `in` is told to be a place
    judged = TASK.judge(lambda **_: SimpleNamespace(logits=logits), batch)
    assert judged.counts.tolist() == [1, 3] and len(judged.losses) == 4
    assert judged.predictions == ((1,), (1, 1, 0))
    wrong = -torch.tensor([0.0, 5.0, 0.0]).log_softmax(-1)[0]
    assert judged.losses[1] == pytest.approx(float(wrong))
    scores = TASK.scores(judged.predictions, found.items, LABELS)
    # Two places are there, three are told, two of them rightly.
    assert (scores["precision"], scores["recall"]) == (pytest.approx(2 / 3), 1.0)
    assert (scores["f1"], scores["accuracy"]) == (pytest.approx(0.8), pytest.approx(0.75))
    naive = TASK.naive_scores(found.items, found.items, LABELS)
    assert naive["accuracy"] == pytest.approx(0.5)
    parts = TASK.main_measure(judged.predictions, found.items, LABELS).parts  # type: ignore[attr-defined]
    assert sum(a for a, _ in parts) / sum(b for _, b in parts) == pytest.approx(scores["f1"])
