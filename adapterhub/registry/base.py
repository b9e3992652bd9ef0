"""What every registry can do, and the values it answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from packaging.version import Version

from adapterhub.progress import Progress
from adapterhub.spec.digest import Digest, FileEntry
from adapterhub.spec.manifest import Manifest
from adapterhub.spec.refs import PackageName, PackageRef
from adapterhub.store import Store, StoredPackage

if TYPE_CHECKING:
    from adapterhub.package import Package
    from adapterhub.weights import Header


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One version that a registry holds of a package."""

    version: Version


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """All that is known of a registry's package before one weight is moved.

    manifest_bytes: the manifest as it was published, whose sha256 is the package's identity; None where it is derived
    from a plain PEFT folder. config: adapter_config.json. header: that of the weights; None for a package without any.
    revision: the registry's commit, None where it has none.
    """

    ref: PackageRef
    manifest: Manifest
    manifest_bytes: bytes | None
    config: Mapping[str, object]
    header: Header | None
    revision: str | None = None

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """The payload."""
        return self.manifest.files

    @property
    def stored(self) -> StoredPackage:
        """The same package as the store names it."""
        digest = None if self.manifest_bytes is None else Digest.of(self.manifest_bytes)
        return StoredPackage(ref=self.ref, manifest=digest, files=self.manifest.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What publishing did: the ref that others install by, its identity, and whether anything was written."""

    ref: PackageRef
    digest: Digest
    created: bool
    where: str

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"ref": str(self.ref), "manifest": str(self.digest), "created": self.created, "where": self.where}


class Registry(Protocol):
    """Where packages are published to and fetched from."""

    @property
    def location(self) -> str:
        """The registry as the user wrote it; what a lockfile records."""
        ...

    def packages(self) -> tuple[PackageName, ...]:
        """Return every package's name, sorted."""
        ...

    def versions(self, name: PackageName) -> tuple[Listed, ...]:
        """Return a package's versions, lowest first.

        Raises:
            UnsatisfiedError: there is no such package here.
        """
        ...

    def describe(self, ref: PackageRef) -> Description:
        """Return what is known of a package without moving its weights.

        Raises:
            UnsatisfiedError: there is no such version. IntegrityError: the registry's copy is damaged.
            InvalidFileError: its manifest is none that can be read, or it holds what no package may hold.
        """
        ...

    def fetch(self, description: Description, into: Store, *, progress: Progress) -> StoredPackage:
        """Bring what the store lacks of a package into it, verified against the manifest, the marker last.

        Raises:
            IntegrityError: the registry's bytes are not what the manifest says; the package does not count as stored.
        """
        ...

    def published(self, ref: PackageRef, manifest: Manifest) -> bool:
        """Say whether this very manifest is published under a ref; asked before anything is written.

        Raises:
            UnsatisfiedError: that version is there with other bytes, or a name that differs in case alone is taken.
        """
        ...

    def publish(self, package: Package, name: PackageName, *, progress: Progress) -> Published:
        """Put a package into the registry under a name; the same bytes again change nothing.

        Raises:
            UnsatisfiedError: that version is there with other bytes, or a name that differs in case alone is taken.
            IntegrityError: the package's files are not what its manifest says.
        """
        ...
