"""The published schemas and the decoders agree: what one refuses the other refuses, on the format's own examples."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.documents import parse_json, parse_yaml
from adapterhub.errors import InvalidFileError, UsageError
from adapterhub.schemas import SCHEMAS, check, load_schema
from adapterhub.spec.index import AdapterIndex
from adapterhub.spec.lockfile import Lockfile
from adapterhub.spec.manifest import Manifest
from adapterhub.spec.project import Project
from adapterhub.spec.provenance import Provenance
from adapterhub.spec.recipe import Recipe
from adapterhub.spec.recipe_lock import RecipeLock

FORMAT = Path(__file__).parent.parent / "docs" / "format.md"
DECODERS: dict[str, Callable[[object], Any]] = {
    "manifest": Manifest.from_data,
    "provenance": Provenance.from_data,
    "recipe": Recipe.from_data,
    "project": Project.from_data,
    "lockfile": Lockfile.from_data,
    "index": AdapterIndex.from_data,
    "recipe-lock": RecipeLock.from_data,
}
# Rules that a JSON Schema cannot say; the decoder alone refuses on their account.
CROSS_FIELD = re.compile(
    r"one file on some file systems|may not be listed|means one thing|is no adapter of this project|comes twice"
    r"|PEP 440 version range|must be finite|not every platform can store|newer than this|older than this|empty layer"
    r"|num_train_epochs: must be above 0|exactly one of load_in|holds a character that no portable|ends in '#'"
    r"|is not a branch, tag or commit|is not a finite number|at most 96|not a version of the form|is not a time such as"
)


def examples(name: str) -> Any:
    pattern = rf"<!-- example: {name} -->\n```(json|yaml)\n(.*?)```"
    [(language, text)] = re.findall(pattern, FORMAT.read_text("utf-8"), re.DOTALL)
    parse = parse_json if language == "json" else parse_yaml
    return parse(text.encode(), where=name)


@pytest.mark.parametrize("name", SCHEMAS)
def test_documented_example_loads_and_round_trips(name: str) -> None:
    data = examples(name)
    assert check(name, data, where=name) == ()
    value = DECODERS[name](data)
    assert DECODERS[name](value.to_data()) == value
    assert check(name, value.to_data(), where=name) == ()


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_is_a_valid_schema(name: str) -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(dict(load_schema(name)))
    assert load_schema(name)["$schema"].endswith("2020-12/schema")


def test_unknown_schema_suggests() -> None:
    with pytest.raises(UsageError) as caught:
        load_schema("manifset")
    assert "manifest" in (caught.value.hint or "")


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def put(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(data)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = value
    return changed


def drop(data: Any, path: tuple[Any, ...]) -> Any:
    changed = copy.deepcopy(data)
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    del parent[path[-1]]
    return changed


def agree(name: str, data: Any) -> None:
    refused_by_schema = bool(check(name, data, where=name))
    try:
        DECODERS[name](data)
    except InvalidFileError as error:
        if not refused_by_schema:
            assert CROSS_FIELD.search(str(error)), f"the decoder alone refuses: {error}"
    else:
        found = [finding.message for finding in check(name, data, where=name)]
        assert not refused_by_schema, f"the schema alone refuses: {found}"


NUMBERS: list[Any] = [None, True, 0, -1, 1.5, 3, 10**20]
TEXTS = [
    "",
    "x",
    "a/b",
    "a/b/c",
    "../x",
    "1.0",
    "1.0.0",
    "9.0",
    "a\x1bb",
    "*",
    "0" * 64,
    "sha256:00",
    "nf4",
    "name#main",
]
OTHERS = ["org/name>=1", "adapter", "stack", [], [1], ["en"], {}, {"x": 1}]
VALUES = st.sampled_from([*NUMBERS, *TEXTS, *OTHERS])


@pytest.mark.parametrize("name", SCHEMAS)
@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_schema_and_decoder_agree_on_changed_values(name: str, data: st.DataObject) -> None:
    document = examples(name)
    path = data.draw(st.sampled_from(list(places(document))))
    agree(name, put(document, path, data.draw(VALUES)))


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_and_decoder_agree_on_dropped_and_unknown_keys(name: str) -> None:
    document = examples(name)
    for path in places(document):
        agree(name, drop(document, path))
        if isinstance(path[-1], str):
            agree(name, put(document, (*path[:-1], "surprise"), 1))
