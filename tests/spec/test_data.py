"""The data part of a recipe: its forms, templates that can read columns and nothing else, and the schema beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapterhub.documents import parse_yaml
from adapterhub.errors import InvalidFileError
from adapterhub.schemas import check
from adapterhub.spec._decode import Faults, Reader
from adapterhub.spec.data import DataSpec, SourceSpec, template_columns, template_parts
from adapterhub.spec.recipe import Recipe

EXAMPLE = Path(__file__).parents[1] / "data" / "formats" / "recipe-1.1.yaml"


def recipe(**data: Any) -> dict[str, Any]:
    return {"recipe_version": "1.1", "name": "x", "version": "1.0.0", "base_model": "b", "data": data}


def spec_of(**data: Any) -> DataSpec:
    assert check("recipe", recipe(**data), where="recipe.yaml") == ()
    return Recipe.from_data(recipe(**data)).data


def test_the_kept_example_says_what_it_says() -> None:
    data = parse_yaml(EXAMPLE.read_bytes(), where="example")
    assert check("recipe", data, where="example") == ()
    value = Recipe.from_data(data)
    assert check("recipe", value.to_data(), where="again") == ()
    assert Recipe.from_data(value.to_data()) == value
    sources = value.data.sources(value.data.train)
    assert [source.file_type for source in sources] == ["jsonl", "json", "csv", "text", "parquet"]
    assert [source.weight for source in sources] == [1.0, 0.5, 1.0, 2.0, 1.0]
    assert [source.format for source in sources] == ["auto", "alpaca", "auto", "auto", "auto"]
    assert sources[2].columns == {"question": "Frage", "answer": "Antwort"}
    assert [set(source.template or ()) for source in sources] == [
        set(), set(), {"system", "user", "assistant"}, set(), {"text"}
    ]  # fmt: skip
    assert (value.data.eval_split, value.data.split_seed) == (0.05, 3)


def test_a_source_takes_what_it_does_not_say() -> None:
    spec = spec_of(
        train=["a.jsonl", {"path": "b.csv", "format": "text"}, {"path": "c.csv", "template": "{y}", "columns": {}}],
        template="{x}",
        columns={"x": "text"},
    )
    a, b, c = spec.sources(spec.train)
    assert (a.format, a.template, a.columns) == ("auto", {"text": "{x}"}, {"x": "text"})
    assert (b.format, b.template, b.columns) == ("text", None, {"x": "text"})
    assert (c.format, c.template, c.columns) == ("auto", {"text": "{y}"}, {})


def test_a_data_set_is_named_by_the_words_of_its_library() -> None:
    whole = {"dataset": "org/name", "name": "de", "split": "train[:10%]", "revision": "v1.0", "weight": 2.0}
    spec = spec_of(train=[whole, {"dataset": "./set/"}], eval={"dataset": "org/name", "split": "test"})
    hub, folder = spec.sources(spec.train)
    assert (hub.path, hub.dataset, hub.name, hub.split, hub.revision) == ("", "org/name", "de", "train[:10%]", "v1.0")
    assert (hub.title, hub.source_name) == ("org/name/de[train[:10%]]", "org/name/de[train[:10%]]@v1.0")
    assert (folder.dataset, folder.folder, folder.title) == ("./set", "set", "./set")
    assert spec.sources(spec.eval)[0].title == "org/name[test]"
    assert SourceSpec(dataset="org/name").title == "org/name[train]"
    assert spec.to_data()["train"] == [whole, {"dataset": "./set"}]
    assert DataSpec.read(Reader(spec.to_data(), Faults(where=""))) == spec
    # Null is nothing said, as elsewhere.
    assert spec_of(train={"dataset": "org/name", "split": None}).train == (SourceSpec(dataset="org/name"),)


def test_one_source_may_stand_alone() -> None:
    assert spec_of(train={"path": "a.csv"}).train == spec_of(train=["a.csv"]).train == "a.csv"
    assert spec_of(train="a.csv", eval={"path": "b.csv", "type": "text"}).eval == (
        SourceSpec(path="b.csv", type="text"),
    )
    names = {"A.CSV": "csv", "a.md": "text", "a": "jsonl", "a.json": "json", "x.csv/rows": "jsonl"}
    assert {name: SourceSpec(path=name).file_type for name in names} == names


# Each with a word of the decoder's fault, and whether the schema can say it too.
REFUSED: tuple[tuple[dict[str, Any], str, bool], ...] = (
    ({"train": []}, "is an empty list", True),
    ({"train": [3]}, "train[0]: expected a file", True),
    ({"train": ["../x"]}, "train[0]: '../x'", True),
    ({"train": {}}, "train.path: is required", True),
    ({"train": {"path": "a", "type": "xml"}}, "'xml' is not known", True),
    ({"train": {"path": "a", "weight": 0}}, "weight: must be above 0", True),
    ({"train": {"path": "a", "weight": -1}}, "weight: must be at least 0", True),
    ({"train": "a", "eval": {"path": "b", "weight": 2}}, "eval.weight: unknown key", True),
    ({"train": {"path": "a.csv", "sample_by": "line"}}, "is for text files; this one is csv", False),
    ({"train": {"dataset": "glue"}}, "is no data set: org/name on the Hub", True),
    ({"train": {"dataset": "org/name/x"}}, "the name of a data set", True),
    ({"train": {"dataset": "../set"}}, "the owner of a data set", True),
    ({"train": {"dataset": "./a/../b"}}, "segment", True),
    ({"train": {"dataset": "./"}}, "a file path is empty", True),
    ({"train": {"dataset": "org/name", "path": "a"}}, "path: is for a file", True),
    ({"train": {"dataset": "org/name", "type": "csv"}}, "type: is for a file", True),
    ({"train": {"dataset": "org/name", "split": "train[1:2:3]"}}, "a split such as", True),
    ({"train": {"dataset": "org/name", "revision": "-x"}}, "a branch, tag or commit", True),
    ({"train": {"dataset": "org/name", "splt": "x"}}, "did you mean 'split'", True),
    ({"train": {"dataset": "./set", "name": "x"}}, "name: is for a data set on the Hub", True),
    ({"train": {"dataset": "./set", "revision": "x"}}, "revision: is for a data set on the Hub", True),
    ({"train": {"dataset": "./set", "split": "train[:9]"}}, "of a folder is a name alone", True),
    ({"train": {"path": "a", "split": "x"}}, "split: is for a data set", True),
    ({"train": "a", "eval": {"dataset": "org/name", "weight": 2}}, "eval.weight: unknown key", True),
    ({"train": {"path": "a", "pth": "b"}}, "did you mean 'path'", True),
    ({"train": "a", "eval": ["b"], "eval_split": 0.1}, "eval_split: is for when", True),
    ({"train": "a", "eval": "b", "split_seed": 1}, "split_seed: is for when", True),
    ({"train": "a", "format": "text", "template": "{x}"}, "format: is for rows without a template", True),
    ({"train": {"path": "a", "format": "text", "template": "{x}"}}, "is for rows without a template", True),
    ({"train": "a", "columns": {"prompt": ""}}, "columns.prompt: is empty", True),
    ({"train": "a", "columns": {"prompt": 3}}, "columns.prompt: expected text", True),
    ({"train": "a", "columns": {"promt": "q"}}, "did you mean 'prompt'", False),
    ({"train": {"path": "a", "columns": {"promt": "q"}}}, "train[0].columns.promt", False),
    ({"train": "a", "columns": {"q": "x"}, "template": "{z}"}, "no column of this name is read", False),
    ({"train": "a", "template": "plain"}, "names no {column}", False),
    ({"train": "a", "template": {"prompt": "{x}"}}, "texts for prompt and completion", True),
    ({"train": "a", "template": {"prompt": "{x}", "assistant": "{x}"}}, "texts for prompt and completion", True),
    ({"train": "a", "template": {"text": "{x}"}}, "unknown key", True),
    ({"train": "a", "template": {"prompt": "{x}", "completion": 3}}, "completion: expected text", True),
    ({"train": "a", "template": {}}, "texts for prompt and completion", True),
    ({"train": "a", "template": [1]}, "expected a mapping", True),
)  # fmt: skip


@pytest.mark.parametrize(("data", "word", "by_schema"), REFUSED, ids=[word for _, word, _ in REFUSED])
def test_what_is_refused(data: dict[str, Any], word: str, by_schema: bool) -> None:
    with pytest.raises(InvalidFileError) as caught:
        Recipe.from_data(recipe(**data))
    assert word in str(caught.value)
    assert bool(check("recipe", recipe(**data), where="recipe.yaml")) == by_schema


@pytest.mark.parametrize(
    "text",
    [
        "{row.__class__}", "{a[0]}", "{a.b}", "{}", "{a!r}", "{a:>10}", "{a:{b}}", "{a", "a}", "{a!}",
        "{a.__init__.__globals__}", "{a[__class__]}", "{0.real}",
    ],
)  # fmt: skip
def test_a_template_reaches_into_nothing(text: str) -> None:
    with pytest.raises(ValueError):
        template_parts(text)
    with pytest.raises(InvalidFileError, match="is not a template"):
        Recipe.from_data(recipe(train="a", template=text))


def test_the_parts_of_a_template() -> None:
    assert template_parts("a {b c}{d}{{e}}") == (("a ", "b c"), ("", "d"), ("{", None), ("e}", None))
    assert template_columns("{b} {a} {b}") == ("b", "a")
    assert template_parts("{0}") == (("", "0"),)  # a column may be called 0


@given(st.text(max_size=40))
def test_any_text_is_a_template_or_refused(text: str) -> None:
    try:
        parts = template_parts(text)
    except ValueError:
        return
    for _, name in parts:
        assert name is None or (name and not set(name) & set(".[]!:{}"))


def test_digests_know_the_oldest_format_that_says_the_same() -> None:
    def digest(**data: Any) -> str:
        return str(Recipe.from_data(recipe(**data)).digest)

    old = digest(train="a.jsonl")
    assert digest(train="a.jsonl", columns={}, split_seed=None, template=None) == old
    assert digest(train=["a.jsonl"]) == digest(train={"path": "a.jsonl"}) == old
    others = [{"train": ["a.jsonl", "b"]}, {"train": "a.csv"}, {"train": "a.jsonl", "split_seed": 1}]
    assert len({old, *(digest(**data) for data in others)}) == 4
