"""`adapt info`: what a registry knows of a package, its versions and one of them in full; nothing is installed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapterhub.environment import Environment
from adapterhub.errors import UnsatisfiedError, UsageError
from adapterhub.ops._manifest_rows import manifest_rows, version_row
from adapterhub.registry import Description, Listed
from adapterhub.resolve.candidates import releases, satisfies
from adapterhub.spec.index import format_time
from adapterhub.spec.refs import PackageRef, Requirement


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """A package in a registry: every version there is, and one of them described.

    registry: the registry's location. versions: lowest first. description: of the version that was asked for, else of
    the newest that would be installed.
    """

    description: Description
    registry: str
    versions: tuple[Listed, ...] = ()

    @property
    def derived(self) -> bool:
        """True where the package brings no manifest."""
        return self.description.manifest_bytes is None

    @property
    def listed(self) -> Listed | None:
        """What the registry's list says of the described version."""
        return next((item for item in self.versions if item.version == self.description.ref.version), None)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know: how it was read, and that it is yanked."""
        listed = self.listed
        if listed is None or listed.yanked is None:
            return self.description.notes
        why = f": {listed.yanked}" if listed.yanked else ""
        return (f"{self.description.ref} is yanked{why}", *self.description.notes)

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return labels and values as a person reads them, empty ones left out."""
        manifest, listed = self.description.manifest, self.listed
        rows = [
            ("name", str(self.description.ref.name)),
            version_row(manifest, derived=self.derived),
            ("published", format_time(listed.published) if listed and listed.published else ""),
            ("yanked", (listed.yanked or "yes") if listed and listed.yanked is not None else ""),
            *manifest_rows(manifest, derived=self.derived),
            ("revision", self.description.revision or ""),
            ("found in", self.registry),
        ]
        return tuple((label, value) for label, value in rows if value)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        manifest = self.description.manifest
        return {
            "name": str(self.description.ref.name),
            "version": str(manifest.version),
            "derived": self.derived,
            "digest": None if self.derived else str(manifest.digest),
            "found_in": self.registry,
            "revision": self.description.revision,
            "versions": [_version_data(item) for item in self.versions],
            "notes": list(self.notes),
            "manifest": manifest.to_data(),
        }


def _version_data(item: Listed) -> dict[str, object]:
    return {
        "version": str(item.version),
        "published": None if item.published is None else format_time(item.published),
        "yanked": item.yanked,
        "base_model": None if item.base_model is None else item.base_model.id,
        "requires": None if item.requires is None else [one.to_data() for one in item.requires],
        "revision": item.revision,
    }


def package_info(word: str, *, environment: Environment, registry: str | None = None, cwd: Path | None = None) -> Info:
    """Look a package up in its registry: `org/name`, a version or range of it, or `org/name#REV`.

    Without a version the newest is described that is neither yanked nor a pre-release, else the newest.

    Raises:
        UsageError: that is no requirement. UnsatisfiedError: no such package, version or revision. IntegrityError,
        InvalidFileError: the registry's copy is damaged. NetworkError, AuthorizationError: the Hub said no.
    """
    try:
        requirement = Requirement.parse(word)
    except ValueError as error:
        raise UsageError(str(error), where=word, hint="adapt info org/name, org/name@X.Y.Z or org/name#REV") from error
    opened = environment.registry_of(requirement.name, given=registry, cwd=cwd if cwd is not None else Path.cwd())
    listed = opened.versions(requirement.name)
    if requirement.revision is not None:
        description = opened.at_revision(requirement.name, requirement.revision)
    else:
        chosen = _choose(requirement, listed, where=opened.location)
        description = opened.describe(PackageRef(requirement.name, chosen.version))
    return Info(description=description, registry=opened.location, versions=listed)


def _choose(requirement: Requirement, listed: Sequence[Listed], *, where: str) -> Listed:
    """Return the version to describe; yanked and pre-releases only where there is nothing else."""
    fitting = [item for item in listed if satisfies(item.version, requirement)]
    if not fitting:
        raise UnsatisfiedError(
            f"no version of {requirement.name} satisfies {requirement}",
            where=where,
            hint=f"available: {', '.join(str(item.version) for item in listed[-10:])}",
        )
    kept = [item for item in fitting if item.yanked is None] or fitting
    allowed = set(releases([item.version for item in kept], [requirement], prereleases=False))
    return max((item for item in kept if item.version in allowed), key=lambda item: item.version)
