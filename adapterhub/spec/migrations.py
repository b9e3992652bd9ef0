"""From each older version of a format to the next: one function a step, on plain data, before anything is decoded.

Every decoder reads an older document through these steps (`Reader.format_version`); `adapt migrate` writes what they
give. A version constant that rises needs its step here and an example of the old version in tests/data/formats/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One step: the key that tells the format, the version it reads, the one it gives, and what it changes.

    change: takes the whole document and returns a new one, in which the version is set for it. It leaves alone what is
    not of the form it knows: the decoder that comes after it finds the faults.
    """

    key: str
    before: str
    after: str
    says: str
    change: Callable[[Mapping[str, object]], dict[str, object]]


def _lock_1_1(data: Mapping[str, object]) -> dict[str, object]:
    """1.1 lists what stack packages require, and tells the branch that was asked for; before it there was neither."""
    entries = data.get("entries")
    if not isinstance(entries, list | tuple):
        return dict(data)
    told = [
        {"requires": [], "requested_revision": None, **entry} if isinstance(entry, Mapping) else entry
        for entry in entries
    ]
    return {**data, "entries": told}


_TOLD_BY_NAME = (".csv", ".tsv", ".tab", ".parquet", ".txt", ".text", ".md")


def _recipe_1_1(data: Mapping[str, object]) -> dict[str, object]:
    """1.1 tells what a file of rows is by its name; before it all were JSONL, whatever their names."""
    rows = data.get("data")
    if not isinstance(rows, Mapping):
        return dict(data)
    told = {
        key: {"path": value, "type": "jsonl"}
        for key, value in rows.items()
        if key in ("train", "eval") and isinstance(value, str) and value.lower().endswith(_TOLD_BY_NAME)
    }
    return {**data, "data": {**rows, **told}}


def _recipe_1_2(data: Mapping[str, object]) -> dict[str, object]:
    """1.2 knows more tasks, methods, training controls and quantizations; what 1.1 said means the same."""
    return dict(data)


def _manifest_1_1(data: Mapping[str, object]) -> dict[str, object]:
    """1.1 has a place for the parameters of a stack's combination; what 1.0 said means the same."""
    return dict(data)


def _provenance_1_1(data: Mapping[str, object]) -> dict[str, object]:
    """1.1 puts the recipe under its name, beside what else was given, and measures under a name of SLSA's form."""
    predicate = data.get("predicate")
    if not isinstance(predicate, Mapping):
        return dict(data)
    definition, run = predicate.get("buildDefinition"), predicate.get("runDetails")
    told = dict(predicate)
    if isinstance(definition, Mapping):
        given = definition.get("externalParameters")
        if isinstance(given, Mapping) and "recipe_version" in given:
            told["buildDefinition"] = {**definition, "externalParameters": {"recipe": given}}
    if isinstance(run, Mapping) and "byproductMeasures" in run:
        rest = {key: value for key, value in run.items() if key != "byproductMeasures"}
        told["runDetails"] = {**rest, "adapterhub_measures": run["byproductMeasures"]}
    return {**data, "predicate": told}


MIGRATIONS: tuple[Migration, ...] = (
    Migration(key="lock_version", before="1.0", after="1.1", says="entries say what stacks require", change=_lock_1_1),
    Migration(
        key="recipe_version", before="1.0", after="1.1", says="rows out of more kinds of files", change=_recipe_1_1
    ),
    Migration(
        key="manifest_version",
        before="1.0",
        after="1.1",
        says="parameters of a stack's combination",
        change=_manifest_1_1,
    ),
    Migration(
        key="provenance_version",
        before="1.0",
        after="1.1",
        says="what was given, what was left, which build it was",
        change=_provenance_1_1,
    ),
    Migration(key="recipe_version", before="1.1", after="1.2", says="more to build and to control", change=_recipe_1_2),
)


def steps_from(key: str, version: str) -> tuple[Migration, ...]:
    """Return the steps that lead from a version of a format to the newest that steps lead to, in order."""
    found: list[Migration] = []
    while step := next((item for item in MIGRATIONS if item.key == key and item.before == version), None):
        found.append(step)
        version = step.after
    return tuple(found)


def migrated(data: Mapping[str, object], key: str) -> Mapping[str, object]:
    """Return a document in the newest version that steps lead to; as it is where there are none."""
    version = data.get(key)
    for step in steps_from(key, version) if isinstance(version, str) else ():
        data = {**step.change(data), key: step.after}
    return data
