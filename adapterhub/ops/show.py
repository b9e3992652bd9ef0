"""`adapt show`: what a package is, wherever it lies: installed, in a folder, or in a registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from adapterhub.environment import Environment
from adapterhub.errors import UnsatisfiedError, UsageError
from adapterhub.ops._manifest_rows import manifest_rows, version_row
from adapterhub.package import open_package
from adapterhub.registry import Listed
from adapterhub.resolve import choose
from adapterhub.spec.lockfile import LockedPackage
from adapterhub.spec.manifest import Manifest
from adapterhub.spec.refs import PackageRef, Requirement


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A package's manifest and where it was found.

    ref: its full name, None for a folder. place: `project`, `user`, `folder`, or the registry's location. versions:
    what the registry has, empty where none was asked. derived: it brought no manifest. notes: how it was read.
    """

    manifest: Manifest
    place: str
    path: Path | None = None
    ref: PackageRef | None = None
    entry: LockedPackage | None = None
    versions: tuple[Version, ...] = ()
    derived: bool = False
    notes: tuple[str, ...] = ()

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return labels and values as a person reads them, empty ones left out."""
        manifest = self.manifest
        rows = [
            ("name", str(self.ref.name) if self.ref else manifest.name),
            version_row(manifest, derived=self.derived),
            ("alias", self.entry.alias or "" if self.entry else ""),
            *manifest_rows(manifest, derived=self.derived),
            ("found in", self.place),
            ("path", str(self.path) if self.path else ""),
            ("versions", ", ".join(map(str, self.versions))),
        ]
        return tuple((label, value) for label, value in rows if value)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "name": str(self.ref.name) if self.ref else self.manifest.name,
            "version": str(self.manifest.version),
            "alias": self.entry.alias if self.entry else None,
            "derived": self.derived,
            "digest": None if self.derived else str(self.manifest.digest),
            "found_in": self.place,
            "path": str(self.path) if self.path else None,
            "versions": [str(version) for version in self.versions],
            "notes": list(self.notes),
            "manifest": self.manifest.to_data(),
        }


def show_adapter(word: str, *, environment: Environment, registry: str | None = None, cwd: Path | None = None) -> Shown:
    """Look up an alias, an installed `org/name`, a folder, or else a requirement in its registry.

    registry: look there, not at what is installed.

    Raises:
        UsageError: the word names nothing, and no registry is known to ask. UnsatisfiedError: the registry lacks it.
    """
    where = cwd if cwd is not None else Path.cwd()
    if registry is None:
        try:
            return _installed(word, environment, where)
        except UsageError as error:
            try:
                requirement = Requirement.parse(word)
                environment.registry_of(requirement.name, given=None, cwd=where)
            except (ValueError, UsageError):
                raise error from None
    try:
        requirement = Requirement.parse(word)
    except ValueError as error:
        raise UsageError(str(error), where=word) from error
    return _in_registry(requirement, environment, registry, where)


def _installed(word: str, environment: Environment, cwd: Path) -> Shown:
    found = environment.find(word, cwd=cwd)
    if not found.folder.is_dir():
        raise UnsatisfiedError("no such folder", where=str(found.folder))
    package = open_package(found.folder)
    place = "folder"
    if found.environment is not None:
        place = "user" if found.environment.is_user else "project"
    return Shown(
        manifest=package.manifest,
        place=place,
        path=found.folder,
        ref=found.entry.ref if found.entry else None,
        entry=found.entry,
        derived=package.derived,
        notes=package.notes,
    )


def _in_registry(requirement: Requirement, environment: Environment, given: str | None, cwd: Path) -> Shown:
    registry = environment.registry_of(requirement.name, given=given, cwd=cwd)
    listed: tuple[Listed, ...] = ()
    reasons: tuple[str, ...] = ("what is there now",)
    if requirement.revision is not None:
        description = registry.at_revision(requirement.name, requirement.revision)
    else:
        listed = registry.versions(requirement.name)
        chosen = choose(requirement, listed, where=registry.location)
        description, reasons = registry.describe(chosen.ref), chosen.reasons
    return Shown(
        manifest=description.manifest,
        place=registry.location,
        ref=description.ref,
        versions=tuple(item.version for item in listed),
        derived=description.manifest_bytes is None,
        notes=(*reasons, *description.notes),
    )
