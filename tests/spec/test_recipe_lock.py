"""recipe.lock: byte-stable, and what it says has changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from adapterhub.documents import read_document, read_recipe_lock, write_recipe_lock
from adapterhub.errors import InvalidFileError
from adapterhub.spec.digest import Digest
from adapterhub.spec.recipe_lock import BuildInputs, RecipeLock

EXAMPLE = Path(__file__).parents[1] / "data" / "formats" / "recipe-lock-1.0.json"
OTHER = Digest("9" * 64)


@pytest.fixture
def lock() -> RecipeLock:
    found = read_recipe_lock(EXAMPLE)
    assert found is not None
    return found


def test_the_bytes_are_those_that_were_read(lock: RecipeLock, tmp_path: Path) -> None:
    assert lock.canonical_bytes() == EXAMPLE.read_bytes()
    path = tmp_path / "recipe.lock"
    assert read_recipe_lock(path) is None
    write_recipe_lock(path, lock)
    before = path.stat()
    write_recipe_lock(path, lock)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    kind, data, decode = read_document(path)
    assert (kind, decode(data)) == ("recipe-lock", lock)


def changed(inputs: BuildInputs, **changes: Any) -> tuple[str, ...]:
    return inputs.changes_to(replace(inputs, **changes))


def test_every_change_is_told_once(lock: RecipeLock) -> None:
    inputs = lock.inputs
    base, machine = inputs.base_model, inputs.machine
    assert machine is not None
    assert inputs.changes_to(inputs) == ()
    assert changed(inputs, recipe=OTHER) == ("the recipe changed",)
    assert changed(inputs, base_model=replace(base, id="acme/other")) == ("base model acme/tiny-llama → acme/other",)
    assert changed(inputs, base_model=replace(base, revision=None)) == (f"base revision {base.revision} → none",)
    for name, word in (
        ("weights", "the base's weights"),
        ("tokenizer", "the tokenizer"),
        ("config", "the base's config"),
    ):
        prints = replace(base.fingerprints, **{name: OTHER})
        assert changed(inputs, base_model=replace(base, fingerprints=prints)) == (f"{word} changed",)
    template = replace(base.fingerprints, chat_template=None)
    assert changed(inputs, base_model=replace(base, fingerprints=template)) == ("the chat template is gone",)
    # Weights sharded anew are the same weights.
    sharded = replace(base.fingerprints, files=MappingProxyType({"a.safetensors": OTHER}))
    assert changed(inputs, base_model=replace(base, fingerprints=sharded)) == ()
    rows = {"train.jsonl": OTHER, "more.jsonl": OTHER}
    assert changed(inputs, data=rows) == (
        "data eval.jsonl is gone",
        "data more.jsonl is new",
        "data train.jsonl changed",
    )
    assert changed(inputs, packages={**inputs.packages, "torch": "2.14.0"}) == ("torch 2.13.0+cpu → 2.14.0",)
    assert changed(inputs, python="3.12") == ("python 3.11 → 3.12",)
    assert changed(inputs, machine=replace(machine, device="cpu x86_64 AVX512")) == (
        "device cpu x86_64 AVX2 → cpu x86_64 AVX512",
    )
    assert changed(inputs, machine=replace(machine, dtype="bfloat16")) == ("dtype float32 → bfloat16",)


def test_threads_are_told_apart_and_an_unknown_machine_is_no_change(lock: RecipeLock) -> None:
    inputs = lock.inputs
    assert inputs.machine is not None
    other = replace(inputs, machine=replace(inputs.machine, threads=1))
    assert inputs.changes_to(other) == ()
    assert inputs.threads_changed_to(other) == (2, 1)
    assert other.digest != inputs.digest
    unknown = replace(inputs, machine=None)
    assert inputs.changes_to(unknown) == unknown.changes_to(inputs) == ()
    assert inputs.threads_changed_to(unknown) is None


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("result", "out"), "../dist"),
        (("result", "out"), "/dist"),
        (("machine", "threads"), 0),
        (("python",), "3"),
        (("recipe",), "x"),
        (("recipe_lock_version",), "2.0"),
    ],
)
def test_what_no_build_writes_is_refused(lock: RecipeLock, path: tuple[str, ...], value: object) -> None:
    data: Any = lock.to_data()
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(InvalidFileError) as caught:
        RecipeLock.from_data(data)
    assert ".".join(path) in str(caught.value)


def test_rows_named_twice_are_refused(lock: RecipeLock) -> None:
    data: Any = lock.to_data()
    data["data"].append(data["data"][0])
    with pytest.raises(InvalidFileError, match="comes twice"):
        RecipeLock.from_data(data)
