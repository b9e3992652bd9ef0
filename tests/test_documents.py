"""YAML and JSON at the edge: what is read, what is refused and where, and that an edited project keeps its comments."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.documents import (
    MAX_AUTHORED_BYTES,
    MAX_DEPTH,
    parse_json,
    parse_yaml,
    read_lockfile,
    read_project,
    read_recipe,
    read_yaml,
    write_lockfile,
    write_project,
)
from adapterhub.errors import AdapterHubError, InvalidFileError, UnsatisfiedError
from adapterhub.spec.lockfile import Lockfile
from adapterhub.spec.refs import Requirement


def yaml(text: str) -> object:
    return parse_yaml(text.encode(), where="f.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("2.0E-5", 2e-5),
        ("1e3", 1000.0),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("0o17", 15),
        ("017", 17),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("2026-01-31", "2026-01-31"),
        ("1_000", "1_000"),
        ("'1.10'", "1.10"),
        ("1.10", 1.1),
        (".inf", float("inf")),
        ("<<", "<<"),
        ("", None),
    ],
)
def test_scalars_are_yaml_1_2_core(text: str, value: object) -> None:
    found = yaml(f"key: {text}")
    assert isinstance(found, dict)
    assert found["key"] == value
    assert type(found["key"]) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2", "duplicate key"),
        ("a: &x 1\nb: *x", "anchors"),
        ("a: !!python/object:os.system x", "tag"),
        ("a: !include x", "tag"),
        ("a: !!str 1", "tag"),
        ("a: [1, 2", "expected"),
        ("? [a]\n: 1", "a key must be text"),
        ("a: " + "9" * 5000, "400 digits"),
        ("a: 1\n---\nb: 2", "more than one document"),
        ("a: \x01", "not"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "nested"),
        ("{" * 3000, "a key must be text"),
    ],
)
def test_what_yaml_refuses(text: str, message: str) -> None:
    with pytest.raises(InvalidFileError) as caught:
        yaml(text)
    assert message in str(caught.value)
    assert "f.yaml" in str(caught.value)


def test_yaml_that_is_not_utf8_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(InvalidFileError, match="UTF-8"):
        parse_yaml(b"a: \xff", where="f.yaml")
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (MAX_AUTHORED_BYTES + 1))
    with pytest.raises(InvalidFileError, match="larger"):
        read_yaml(big)
    with pytest.raises(UnsatisfiedError, match="no such file"):
        read_yaml(tmp_path / "absent.yaml")
    with pytest.raises(InvalidFileError, match="regular file"):
        read_yaml(tmp_path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"a": 1, "a": 2}', "twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": 1e999}', "too large"),
        (b"{", "line 1"),
        (b"\xff", "UTF-8"),
        (b"[" * 100_000, "nested"),
        (b"[" * 70 + b"]" * 70, "nested"),
    ],
)
def test_what_json_refuses(data: bytes, message: str) -> None:
    with pytest.raises(InvalidFileError, match=message):
        parse_json(data, where="f.json")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_data_or_a_clean_error(data: bytes) -> None:
    for parse in (parse_yaml, parse_json):
        try:
            parse(data, where="f")
        except AdapterHubError as error:
            assert "f" in str(error)


def test_an_unquoted_version_says_to_quote_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("recipe_version: 1.0\nname: a\nversion: 1.10\nbase_model: b\ndata: {train: t.jsonl}\n")
    with pytest.raises(InvalidFileError) as caught:
        read_recipe(recipe)
    text = str(caught.value)
    assert "recipe_version" in text
    assert 'quote it ("1.0")' in text
    assert "version: expected text, found a number: quote it" in text


PROJECT = """\
# our adapters
project_version: "1.0"
base_model: smollm2   # the small one
adapters:
  # contracts
  legal: acme/legal-lora>=1.2,<2
stacks: {}
registries:
  "*": ./registry
"""


def test_an_edited_project_keeps_its_comments_and_order(tmp_path: Path) -> None:
    (tmp_path / "adapters.yaml").write_text(PROJECT)
    project = read_project(tmp_path)
    write_project(tmp_path, project.with_adapter("spanish", Requirement.parse("acme/spanish-lora@1.0.0")))
    text = (tmp_path / "adapters.yaml").read_text()
    for kept in ("# our adapters", "# the small one", "# contracts", 'project_version: "1.0"', '"*":', "stacks: {}"):
        assert kept in text
    again = read_project(tmp_path)
    assert list(again.adapters) == ["legal", "spanish"]
    write_project(tmp_path, again.without_adapter("spanish"))
    assert read_project(tmp_path) == project


def test_a_new_project_reads_back(tmp_path: Path) -> None:
    (tmp_path / "adapters.yaml").write_text(PROJECT)
    project = read_project(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    write_project(other, project)
    assert read_project(other) == project


def test_an_unchanged_lock_is_not_written_again(tmp_path: Path) -> None:
    write_lockfile(tmp_path, Lockfile())
    path = tmp_path / "adapters.lock"
    before = path.stat().st_mtime_ns, path.stat().st_ino
    write_lockfile(tmp_path, read_lockfile(tmp_path))
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_a_lock_from_the_future_is_refused_with_the_upgrade_hint(tmp_path: Path) -> None:
    (tmp_path / "adapters.lock").write_text('{"lock_version": "2.0"}')
    with pytest.raises(InvalidFileError, match="upgrade"):
        read_lockfile(tmp_path)
