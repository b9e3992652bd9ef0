"""Every version of every format that was ever written can be read: kept examples, and the steps between them."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from adapterhub.bases import decode_record
from adapterhub.documents import parse_json, parse_yaml
from adapterhub.errors import InvalidFileError
from adapterhub.ops.migrate import FIXED, VERSION_KEYS, WRITERS
from adapterhub.spec.index import AdapterIndex
from adapterhub.spec.lockfile import LOCK_VERSION, Lockfile
from adapterhub.spec.manifest import Manifest
from adapterhub.spec.migrations import MIGRATIONS, migrated, steps_from
from adapterhub.spec.project import Project
from adapterhub.spec.provenance import Provenance
from adapterhub.spec.recipe import Recipe
from adapterhub.spec.recipe_lock import RecipeLock
from adapterhub.store import StoredPackage

SOURCE = Path(__file__).parents[2] / "adapterhub"
EXAMPLES = Path(__file__).parents[1] / "data" / "formats"


class Format(NamedTuple):
    """One kind of document: the constant of its version, the key in the file, the examples' name, the decoder."""

    constant: str
    key: str
    example: str
    decode: Callable[[object], object]


FORMATS = (
    Format("spec.recipe.RECIPE_VERSION", "recipe_version", "recipe-{}.yaml", Recipe.from_data),
    Format("spec.project.PROJECT_VERSION", "project_version", "project-{}.yaml", Project.from_data),
    Format("spec.lockfile.LOCK_VERSION", "lock_version", "lockfile-{}.json", Lockfile.from_data),
    Format("spec.manifest.MANIFEST_VERSION", "manifest_version", "manifest-{}.json", Manifest.from_data),
    Format("spec.provenance.PROVENANCE_VERSION", "provenance_version", "provenance-{}.json", Provenance.from_data),
    Format("spec.recipe_lock.RECIPE_LOCK_VERSION", "recipe_lock_version", "recipe-lock-{}.json", RecipeLock.from_data),
    Format("spec.index.INDEX_VERSION", "index_version", "index-{}.json", AdapterIndex.from_data),
    Format(
        "store.content.REF_VERSION",
        "ref_version",
        "store-ref-{}.json",
        lambda data: StoredPackage.from_data(data, where="ref"),
    ),
    Format(
        "bases.RECORD_VERSION",
        "record_version",
        "base-record-{}.json",
        lambda data: decode_record(data, where="record", root=Path("/")),
    ),
)


@cache
def constants() -> Mapping[str, str]:
    """Return every `X_VERSION = "MAJOR.MINOR"` of the source by its dotted name."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
        text = path.read_text("utf-8")
        for node in ast.parse(text).body if "_VERSION" in text else ():
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                name, value = getattr(node.targets[0], "id", ""), node.value.value
                if name.endswith("_VERSION") and re.fullmatch(r"[0-9]+\.[0-9]+", str(value)):
                    found[f"{module}.{name}"] = str(value)
    return found


def unkept(present: Mapping[str, str], known: tuple[Format, ...] = FORMATS) -> list[str]:
    """Return what is missing for the versions that the source writes: a row, an example, or a step."""
    rows = {row.constant: row for row in known}
    missing = []
    for constant, version in present.items():
        row = rows.get(constant)
        if row is None:
            # What adapterhub alone writes and reads, and never beyond a crash or two, may do without at first.
            if constant.startswith("spec.") or version != "1.0":
                missing.append(f"{constant}: no row in FORMATS")
            continue
        if not (EXAMPLES / row.example.format(version)).is_file():
            missing.append(f"{constant}: no example of {version}")
        steps = steps_from(row.key, "1.0")
        if version != "1.0" and (not steps or steps[-1].after != version):
            missing.append(f"{constant}: no steps from 1.0 to {version}")
        missing += [
            f"{constant}: no example of {step.before}"
            for step in steps
            if not (EXAMPLES / row.example.format(step.before)).is_file()
        ]
    return missing


def read(path: Path) -> dict[str, object]:
    parse = parse_yaml if path.suffix == ".yaml" else parse_json
    data = parse(path.read_bytes(), where=path.name)
    assert isinstance(data, dict)
    return data


def examples() -> list[tuple[Format, Path]]:
    return [(row, path) for row in FORMATS for path in sorted(EXAMPLES.glob(row.example.format("*")))]


def test_no_version_rises_without_a_kept_example_and_a_step() -> None:
    assert unkept(constants()) == []


def test_the_check_sees_a_version_that_rose() -> None:
    present = constants()
    assert set(present) >= {row.constant for row in FORMATS}
    assert unkept({**present, "spec.recipe.RECIPE_VERSION": "1.9"}) == [
        "spec.recipe.RECIPE_VERSION: no example of 1.9",
        "spec.recipe.RECIPE_VERSION: no steps from 1.0 to 1.9",
    ]
    assert unkept({"spec.new.NEW_VERSION": "1.0"}) == ["spec.new.NEW_VERSION: no row in FORMATS"]
    assert unkept({"store.leases.LEASE_VERSION": "1.0"}) == []
    assert unkept({"store.leases.LEASE_VERSION": "1.1"}) != []


def test_every_step_belongs_to_a_format_and_can_be_written() -> None:
    versions = {row.key: constants()[row.constant] for row in FORMATS}
    kinds = {key: kind for kind, key in VERSION_KEYS.items()}
    for step in MIGRATIONS:
        assert steps_from(step.key, step.before)[-1].after == versions[step.key]
        if step.key in kinds:
            assert kinds[step.key] in {*WRITERS, *FIXED}
    starts = [(step.key, step.before) for step in MIGRATIONS]
    assert len(set(starts)) == len(starts)


@pytest.mark.parametrize(("row", "path"), examples(), ids=lambda item: getattr(item, "name", ""))
def test_every_kept_example_is_read(row: Format, path: Path) -> None:
    data = read(path)
    assert data[row.key] == path.stem.rpartition("-")[2]
    before = json.dumps(data)
    value = row.decode(data)
    assert json.dumps(data) == before  # the caller's data stays as it was
    # What it is read as is what its steps make of it, and that is of the present version.
    steps = steps_from(row.key, str(data[row.key]))
    assert row.decode(migrated(data, row.key)) == value
    assert (steps[-1].after if steps else data[row.key]) == constants()[row.constant]


def test_lockfile_1_0_had_adapters_alone() -> None:
    old = Lockfile.from_data(read(EXAMPLES / "lockfile-1.0.json"))
    new = Lockfile.from_data(read(EXAMPLES / "lockfile-1.1.json"))
    assert [entry.requires for entry in old.entries] == [(), ()]
    assert [entry.requested_revision for entry in old.entries] == [None, None]
    assert [entry.requested_revision for entry in new.entries] == [None, None, "main"]
    same = tuple(replace(entry, requested_revision=None) for entry in new.entries if entry.alias != "clinic")
    assert old.entries == same
    assert new.canonical_bytes() == (EXAMPLES / "lockfile-1.1.json").read_bytes()
    assert old.base == new.base
    assert old.to_data()["lock_version"] == LOCK_VERSION


def test_recipe_1_0_read_every_file_as_jsonl() -> None:
    data = read(EXAMPLES / "recipe-1.0.yaml")
    plain = Recipe.from_data(data)
    assert plain.digest == Recipe.from_data({**data, "recipe_version": "1.1"}).digest
    # As adapterhub 0.1 took it, when 1.0 was the present version: manifests hold such digests.
    assert str(plain.digest) == "sha256:bfd3dae9c46f6720904a9f0facaa97adcfe84a0b0454816f4806695d303aed8d"
    named = {**data, "data": {"train": "rows.txt", "eval": "rows.JSON"}}
    spec = Recipe.from_data(named).data
    assert [source.file_type for source in (*spec.sources(spec.train), *spec.sources(spec.eval))] == ["jsonl", "json"]
    assert Recipe.from_data({**named, "recipe_version": "1.1"}).data.train == "rows.txt"


def test_an_older_file_s_faults_are_found_all_the_same() -> None:
    with pytest.raises(InvalidFileError) as caught:
        Lockfile.from_data({"lock_version": "1.0", "entries": "none"})
    assert "a list" in str(caught.value)
    with pytest.raises(InvalidFileError) as caught:
        Lockfile.from_data({"lock_version": "1.0", "entries": ["x", {"alais": "y"}]})
    assert "did you mean 'alias'" in str(caught.value)


@pytest.mark.parametrize("version", ["2.0", "0.9", "1", 1.0, None])
def test_what_no_step_leads_from(version: object) -> None:
    with pytest.raises(InvalidFileError) as caught:
        Lockfile.from_data({"lock_version": version, "entries": []})
    if version == "2.0":
        assert "pip install -U adapterhub" in str(caught.value)
