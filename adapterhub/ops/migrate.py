"""`adapt migrate`: the format's version of each file, and older ones written anew in the present one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from adapterhub.documents import read_document, read_yaml, write_project, write_recipe_data
from adapterhub.environment import Environment
from adapterhub.errors import UnsatisfiedError
from adapterhub.files import write_atomic
from adapterhub.spec.lockfile import LOCK_FILE, Lockfile
from adapterhub.spec.migrations import Migration, migrated, steps_from
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.project import PROJECT_FILE, Project

# What stands in the way of writing a kind of file anew: its bytes are what others know it by.
FIXED: Mapping[str, str] = MappingProxyType(
    {
        "manifest": "its bytes are the package's identity",
        "provenance": "it is a statement about a build that was made",
        "index": "`adapt publish` writes it anew",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileVersion:
    """One file: its kind, its version, and the steps that lead to the present one (none for a present one).

    value: what it says. fixed: why it is not written anew although it is older; "" where nothing is in the way.
    """

    path: Path
    kind: str
    version: str
    value: object
    steps: tuple[Migration, ...] = ()
    fixed: str = ""

    @property
    def target(self) -> str:
        """The version it will have."""
        return self.steps[-1].after if self.steps and not self.fixed else self.version

    @property
    def changes(self) -> bool:
        """True when it is to be written anew."""
        return self.target != self.version

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "path": str(self.path),
            "kind": self.kind,
            "version": self.version,
            "target": self.target,
            "steps": [{"from": step.before, "to": step.after, "says": step.says} for step in self.steps],
            "changes": self.changes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MigratePlan(Plan):
    """Every file that was looked at, in the order of the steps."""

    files: tuple[FileVersion, ...] = ()

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {**Plan.to_data(self), "files": [item.to_data() for item in self.files]}


def plan_migrate(paths: Iterable[Path] = (), *, environment: Environment) -> MigratePlan:
    """Look at files, or without any at the environment's adapters.yaml and adapters.lock, and decide what to write.

    A folder stands for the adapters.yaml and adapters.lock in it.

    Raises:
        UnsatisfiedError: there is no such file. InvalidFileError: one breaks its format, or is of a newer MAJOR.
    """
    given = tuple(paths)
    chosen = [file for path in given for file in _files_at(path)] if given else _present(environment.folder)
    files = tuple(_look_at(path) for path in dict.fromkeys(chosen))
    return MigratePlan(verb="migrate", files=files, steps=tuple(_step(item) for item in files))


def _files_at(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    found = _present(path)
    if not found:
        raise UnsatisfiedError(
            f"holds neither {PROJECT_FILE} nor {LOCK_FILE}", where=str(path), hint="name the file itself"
        )
    return found


def _present(folder: Path) -> list[Path]:
    return [folder / name for name in (PROJECT_FILE, LOCK_FILE) if os.path.lexists(folder / name)]


def _look_at(path: Path) -> FileVersion:
    kind, data, decode = read_document(path)
    value = decode(data)
    assert isinstance(data, dict)
    key = VERSION_KEYS[kind]
    version = str(data[key])
    steps = steps_from(key, version)
    return FileVersion(
        path=path, kind=kind, version=version, value=value, steps=steps, fixed=FIXED.get(kind, "") if steps else ""
    )


def _step(item: FileVersion) -> Step:
    if item.changes:
        says = "; ".join(step.says for step in item.steps)
        return Step(action="write", subject=str(item.path), detail=f"{item.version} to {item.target}: {says}")
    why = f", read as it is: {item.fixed}" if item.fixed else ""
    return Step(action="keep", subject=str(item.path), detail=f"{item.kind} {item.version}{why}")


def migrate(plan: MigratePlan) -> None:
    """Write the files that the plan says anew, each atomically; comments of YAML files stay.

    Raises:
        InvalidFileError: one was changed since the plan, into what breaks its format. LocalIOError: the disk said no.
    """
    for item in plan.files:
        if item.changes:
            now = _look_at(item.path)  # somebody may have written it since
            WRITERS[now.kind](now.path, now.value)


def _write_lock(path: Path, value: object) -> None:
    assert isinstance(value, Lockfile)
    write_atomic(path, value.canonical_bytes())


def _write_project(path: Path, value: object) -> None:
    assert isinstance(value, Project)
    write_project(path.parent, value)


def _write_recipe(path: Path, value: object) -> None:
    """Write what the steps make of the file, not the value: a recipe says little, and the value every default."""
    del value
    data = read_yaml(path)  # JSON is YAML
    assert isinstance(data, dict)
    write_recipe_data(path, migrated(data, "recipe_version"))


VERSION_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "recipe": "recipe_version",
        "project": "project_version",
        "lockfile": "lock_version",
        "manifest": "manifest_version",
        "provenance": "provenance_version",
        "index": "index_version",
        "recipe-lock": "recipe_lock_version",
    }
)
# One for each kind that has steps and is not FIXED; a test holds the two together.
WRITERS: Mapping[str, Callable[[Path, object], None]] = MappingProxyType(
    {"lockfile": _write_lock, "project": _write_project, "recipe": _write_recipe}
)
