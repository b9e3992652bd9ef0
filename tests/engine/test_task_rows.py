"""Rows of the tasks that learn classes, tags, spans and pairs: read, refused by place, and kept apart from text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapterhub.engine.row_kinds import Answer, AnswerRow, LabelledRow, PairRow, Row, TaggedRow
from adapterhub.engine.rows import read_row_files, shared_rows, split_rows
from adapterhub.errors import InvalidFileError
from adapterhub.schemas import check
from adapterhub.spec.data import SHAPES, TASK_SHAPES, DataSpec, SourceSpec
from adapterhub.spec.recipe import Recipe

CONTEXT = "The cat sat on the mat."


def write(folder: Path, *rows: object, name: str = "r.jsonl") -> str:
    (folder / name).write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return name


def read(folder: Path, task: str, *rows: object, name: str = "r.jsonl", **keys: Any) -> tuple[Row, ...]:
    train, _ = read_row_files(folder, DataSpec(train=write(folder, *rows, name=name), **keys), task=task)
    return train.rows


def recipe(task: str, **data: object) -> Recipe:
    given = {"recipe_version": "1.2", "name": "x", "version": "1.0.0", "base_model": "b", "task": task}
    return Recipe.from_data({**given, "data": {"train": "r.jsonl", **data}})


READ: tuple[tuple[str, object, Row], ...] = (
    ("SEQ_CLS", {"text": "good", "label": "pos", "id": 1}, LabelledRow(place="r.jsonl:1", text="good", label="pos")),
    ("SEQ_CLS", {"sentence": "good", "label": 1}, LabelledRow(place="r.jsonl:1", text="good", label="1")),
    ("SEQ_CLS", {"text": "good", "label": False}, LabelledRow(place="r.jsonl:1", text="good", label="false")),
    (
        "SEQ_CLS",
        {"sentence1": "a", "sentence2": "b", "label": "same"},
        LabelledRow(place="r.jsonl:1", text="a", pair="b", label="same"),
    ),
    (
        "TOKEN_CLS",
        {"tokens": ["in", "Rome"], "ner_tags": ["O", "B-LOC"]},
        TaggedRow(place="r.jsonl:1", text="in Rome", tokens=("in", "Rome"), tags=("O", "B-LOC")),
    ),
    (
        "QUESTION_ANS",
        {"question": "Who?", "context": CONTEXT, "answers": {"text": ["cat"], "answer_start": [4]}},
        AnswerRow(place="r.jsonl:1", prompt="Who?", text=CONTEXT, answers=(Answer(text="cat", start=4),)),
    ),
    (
        "QUESTION_ANS",
        {"question": "Why?", "context": CONTEXT, "answers": {"text": [], "answer_start": []}},
        AnswerRow(place="r.jsonl:1", prompt="Why?", text=CONTEXT, answers=()),
    ),
    ("SEQ_2_SEQ_LM", {"source": "one", "target": "uno"}, Row(place="r.jsonl:1", prompt="one", text="uno")),
    ("SEQ_2_SEQ_LM", {"prompt": "one", "completion": "uno"}, Row(place="r.jsonl:1", prompt="one", text="uno")),
    (
        "FEATURE_EXTRACTION",
        {"query": "a", "positive": "b", "negative": "c"},
        PairRow(place="r.jsonl:1", prompt="a", text="b", negative="c"),
    ),
    (
        "FEATURE_EXTRACTION",
        {"sentence1": "a", "sentence2": "b", "score": 4},
        PairRow(place="r.jsonl:1", prompt="a", text="b", score=4.0),
    ),
)


@pytest.mark.parametrize(("task", "data", "row"), READ)
def test_the_shape_of_each_task(tmp_path: Path, task: str, data: object, row: Row) -> None:
    assert read(tmp_path, task, data) == (row,)


MALFORMED: tuple[tuple[str, object, str], ...] = (
    ("SEQ_CLS", {"text": "good"}, "has 'text' but no 'label', which SEQ_CLS needs"),
    ("SEQ_CLS", {"messages": []}, "has none of 'text' with 'label' for SEQ_CLS (data.columns); its columns: 'messages"),
    ("SEQ_CLS", {"text": " ", "label": "a"}, "text: is empty"),
    ("SEQ_CLS", {"text": "a", "label": ""}, "label: is empty"),
    ("SEQ_CLS", {"text": "a", "label": None}, "label: expected a name or a whole number, found nothing"),
    ("SEQ_CLS", {"text": "a", "label": 0.5}, "label: expected a name or a whole number, found a number"),
    ("SEQ_CLS", {"text": "a", "text_pair": 3, "label": "b"}, "text_pair: expected text"),
    ("TOKEN_CLS", {"tokens": "in Rome", "tags": ["O"]}, "tokens: expected a list, found text"),
    ("TOKEN_CLS", {"tokens": [], "tags": ["O"]}, "tokens: expected a list, found an empty one"),
    ("TOKEN_CLS", {"tokens": ["a", "b"], "tags": ["O"]}, "has 2 tokens and 1 tags"),
    ("TOKEN_CLS", {"tokens": ["a", 3], "tags": ["O", "O"]}, "tokens[1]: expected text"),
    ("TOKEN_CLS", {"tokens": ["a"], "tags": [["O"]]}, "tags[0]: expected a name"),
    ("QUESTION_ANS", {"question": "q", "context": "c"}, "has 'question' but no 'answers'"),
    ("QUESTION_ANS", {"question": "q", "context": "c", "answers": ["c"]}, "answers: expected {"),
    (
        "QUESTION_ANS",
        {"question": "q", "context": CONTEXT, "answers": {"text": ["cat"], "answer_start": [3]}},
        "answers.answer_start[0]: at 3 stands ' ca', not 'cat'",
    ),
    (
        "QUESTION_ANS",
        {"question": "q", "context": CONTEXT, "answers": {"text": ["."], "answer_start": [-1]}},
        "answers.answer_start[0]: at -1 stands 'nothing'",
    ),
    (
        "QUESTION_ANS",
        {"question": "q", "context": CONTEXT, "answers": {"text": ["cat"], "answer_start": []}},
        "has 1 text and 0 answer_start",
    ),
    ("SEQ_2_SEQ_LM", {"text": "a"}, "has none of 'prompt' with 'completion' for SEQ_2_SEQ_LM"),
    ("FEATURE_EXTRACTION", {"anchor": "a", "positive": "b", "negative": "c", "score": 1}, "a negative and a score"),
    ("FEATURE_EXTRACTION", {"anchor": "a", "positive": "b", "score": "high"}, "score: expected a number"),
    ("FEATURE_EXTRACTION", {"anchor": "a"}, "has 'anchor' but no 'positive'"),
)


@pytest.mark.parametrize(("task", "data", "fault"), MALFORMED, ids=[fault[:50] for _, _, fault in MALFORMED])
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, task: str, data: object, fault: str) -> None:
    good = next(given for name, given, _ in READ if name == task)
    with pytest.raises(InvalidFileError) as caught:
        read(tmp_path, task, good, data, good)
    assert caught.value.message.startswith("r.jsonl:2: ")
    assert fault in caught.value.message


def test_all_malformed_rows_are_named_at_once(tmp_path: Path) -> None:
    rows = ({"text": "a"}, {"text": "a", "label": "x"}, {"text": 1, "label": []})
    with pytest.raises(InvalidFileError) as caught:
        read(tmp_path, "SEQ_CLS", *rows)
    assert caught.value.details == (
        "r.jsonl:1: has 'text' but no 'label', which SEQ_CLS needs; its columns: 'text'",
        "r.jsonl:3: text: expected text, found a whole number",
        "r.jsonl:3: label: expected a name or a whole number, found a list",
    )


def test_whole_numbers_count_in_the_recipes_labels(tmp_path: Path) -> None:
    rows = read(tmp_path, "SEQ_CLS", "text,label", "a,1", "b,0", "c,no", name="r.csv", labels=("no", "yes"))
    assert [row.label for row in rows if isinstance(row, LabelledRow)] == ["yes", "no", "no"]
    (tagged,) = read(tmp_path, "TOKEN_CLS", {"tokens": ["in", "Rome"], "tags": [0, 1]}, labels=("O", "B-LOC"))
    assert isinstance(tagged, TaggedRow) and tagged.tags == ("O", "B-LOC")
    # Where the labels are numbers themselves, a number is a name.
    (row,) = read(tmp_path, "SEQ_CLS", {"text": "a", "label": 1}, labels=("1", "0"))
    assert isinstance(row, LabelledRow) and row.label == "1"


@pytest.mark.parametrize(
    ("label", "fault"),
    [("maybe", "label: 'maybe' is not among data.labels"), (2, "label: 2 counts to none"), (-1, "-1 counts to none")],
)
def test_a_label_that_the_recipe_does_not_name(tmp_path: Path, label: object, fault: str) -> None:
    with pytest.raises(InvalidFileError, match=fault):
        read(tmp_path, "SEQ_CLS", {"text": "a", "label": label}, labels=("no", "yes"))


def test_columns_and_templates(tmp_path: Path) -> None:
    data = {"title": "T", "body": "B", "stars": 5, "text": "other"}
    (row,) = read(tmp_path, "SEQ_CLS", data, columns={"text": "body", "label": "stars"})
    assert row == LabelledRow(place="r.jsonl:1", text="B", label="5")
    (row,) = read(tmp_path, "SEQ_CLS", data, columns={"label": "stars"}, template={"text": "{title}: {body}"})
    assert row == LabelledRow(place="r.jsonl:1", text="T: B", label="5")
    parts = {"prompt": "translate: {title}", "completion": "{body}"}
    assert read(tmp_path, "SEQ_2_SEQ_LM", data, template=parts)[0].prompt == "translate: T"
    # Our own name counts where both are there.
    (row,) = read(tmp_path, "SEQ_CLS", {"text": "a", "sentence": "b", "label": "x"})
    assert row.text == "a"


def test_what_a_recipe_may_not_say_for_its_task() -> None:
    for task, data, fault in (
        ("SEQ_CLS", {"format": "text"}, "'text' is no format of rows for SEQ_CLS"),
        ("CAUSAL_LM", {"format": "classification"}, "no format of rows for CAUSAL_LM"),
        ("SEQ_CLS", {"train_on": "all"}, "is for CAUSAL_LM"),
        ("CAUSAL_LM", {"labels": ["a", "b"]}, "is for SEQ_CLS and TOKEN_CLS"),
        ("SEQ_CLS", {"labels": ["a"]}, "at least two"),
        ("SEQ_CLS", {"labels": ["a", "a"]}, "has 'a' twice"),
        ("SEQ_CLS", {"labels": ["a", " "]}, "has an empty name"),
        ("SEQ_CLS", {"labels": [0, 1]}, "expected text"),
        ("CAUSAL_LM", {"columns": {"label": "x"}}, "no column of this name is read"),
        ("TOKEN_CLS", {"columns": {"completion": "x"}}, "no column of this name is read"),
        ("QUESTION_ANS", {"template": "{a}"}, "is not for QUESTION_ANS"),
        ("SEQ_2_SEQ_LM", {"template": "{a}"}, "of SEQ_2_SEQ_LM is prompt with completion, and nothing else"),
    ):
        with pytest.raises(InvalidFileError) as caught:
            recipe(task, **data)
        assert fault in str([caught.value.message, *caught.value.details]), (task, data)


def test_labels_are_kept_and_move_the_digest() -> None:
    named = recipe("SEQ_CLS", labels=["no", "yes"], format="classification")
    assert named.data.labels == ("no", "yes")
    assert Recipe.from_data(named.to_data()) == named
    assert check("recipe", named.to_data(), where="recipe.yaml") == ()
    assert named.digest != recipe("SEQ_CLS", labels=["yes", "no"], format="classification").digest
    assert "labels" not in recipe("SEQ_CLS").data.to_data()


def test_every_task_has_shapes_that_are_known() -> None:
    from adapterhub.catalog.tasks import TASKS

    assert set(TASK_SHAPES) == set(TASKS)
    assert {shape for shapes in TASK_SHAPES.values() for shape in shapes} == set(SHAPES)


def test_what_belongs_together_is_on_one_side_of_the_split(tmp_path: Path) -> None:
    asked = [
        {"question": f"q{i}", "context": f"text {i // 4}", "answers": {"text": [], "answer_start": []}}
        for i in range(80)
    ]
    train, held_out = split_rows(read(tmp_path, "QUESTION_ANS", *asked), 0.25, seed=1)
    assert train and held_out
    assert not {row.text for row in train} & {row.text for row in held_out}
    texts = [{"text": f"t{i // 2}", "label": str(i % 2)} for i in range(40)]
    train, held_out = split_rows(read(tmp_path, "SEQ_CLS", *texts), 0.25, seed=1)
    assert not {row.text for row in train} & {row.text for row in held_out}


def test_a_row_that_is_trained_and_held_out_is_told_with_its_label(tmp_path: Path) -> None:
    a, b, c = read(tmp_path, "SEQ_CLS", *({"text": t, "label": y} for t, y in (("x", "1"), ("x", "1"), ("x", "2"))))
    assert shared_rows([a], [b, c]) == ("r.jsonl:2",)
    pairs = read(tmp_path, "FEATURE_EXTRACTION", *({"anchor": "x", "positive": "y", "score": s} for s in (1, 2, 1)))
    assert shared_rows(pairs[:1], pairs[1:]) == ("r.jsonl:3",)


def test_a_list_of_objects(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps([{"tokens": ["a"], "tags": ["X"]}, {"tokens": ["b"], "tags": []}]))
    with pytest.raises(InvalidFileError, match=r"r\.json:1: tags: expected a list, found an empty one"):
        read_row_files(tmp_path, DataSpec(train=(SourceSpec(path="r.json"),)), task="TOKEN_CLS")
