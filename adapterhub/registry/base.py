"""What every registry can do, and the values it answers with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from packaging.version import Version

from adapterhub.errors import UnsatisfiedError
from adapterhub.progress import Progress
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.digest import Digest, FileEntry
from adapterhub.spec.index import format_time
from adapterhub.spec.manifest import CARD_FILE, LOSS_PLOT_FILE, Manifest, StackRequirement
from adapterhub.spec.provenance import PROVENANCE_FILE
from adapterhub.spec.refs import PackageName, PackageRef
from adapterhub.store import Store, StoredPackage

if TYPE_CHECKING:
    from adapterhub.package import Package
    from adapterhub.weights import Header


# What is published beside the payload and the manifest where a package has it, and never fetched.
COMPANIONS = (CARD_FILE, PROVENANCE_FILE, LOSS_PLOT_FILE)


def version_taken(ref: PackageRef, *, where: str) -> UnsatisfiedError:
    """Return the refusal to publish other bytes under a version that is there."""
    release = ref.version.release
    return UnsatisfiedError(
        f"{ref} is published already, with other bytes; a version never changes",
        where=where,
        hint=f"give the package a higher version, such as {release[0]}.{release[1]}.{release[2] + 1}, "
        "in its recipe or manifest, and publish that",
    )


def differs_in_case(there: str, wanted: str, *, where: str) -> UnsatisfiedError:
    """Return the refusal to publish under a name that a file system or the Hub takes for one that is there."""
    return UnsatisfiedError(
        f"{there!r} is there already and differs from {wanted!r} in case alone",
        where=where,
        hint=f"publish under {there!r}, or choose a name of its own",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One version that a registry holds of a package, as far as its listing tells without a look at the package.

    published: when, in UTC. yanked: why it should not be chosen any more ("" when no reason was given), None while it
    may be. base_model, requires: None where only the manifest knows. revision: the commit its tag names.
    """

    version: Version
    published: datetime | None = None
    yanked: str | None = None
    base_model: BaseModelRef | None = None
    requires: tuple[StackRequirement, ...] | None = None
    revision: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """All that is known of a registry's package before one weight is moved.

    manifest_bytes: the manifest as it was published, whose sha256 is the package's identity; None where it is derived
    from a plain PEFT folder. config: adapter_config.json. header: that of the weights; None for a package without any.
    revision: the registry's commit, None where it has none. notes: what a person should know about how it was read.
    """

    ref: PackageRef
    manifest: Manifest
    manifest_bytes: bytes | None
    config: Mapping[str, object]
    header: Header | None
    revision: str | None = None
    notes: tuple[str, ...] = ()

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What a search asks for; every part that is given must hold, and no part means everything.

    text: words in the name, summary or keywords, in any case. domain, language: of the manifest's lists. base: a base
    model's id. task, method: the catalog's words. limit: how many results at most.
    """

    text: str | None = None
    domain: str | None = None
    language: str | None = None
    base: str | None = None
    task: str | None = None
    method: str | None = None
    limit: int = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One package that a search found; what a registry does not know is None or empty.

    version: the newest that is neither a pre-release nor yanked, else the newest.
    """

    name: PackageName
    version: Version | None = None
    summary: str = ""
    base: str | None = None
    method: str | None = None
    task: str | None = None
    domains: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    license: str | None = None
    updated: datetime | None = None
    downloads: int | None = None

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "name": str(self.name),
            "version": None if self.version is None else str(self.version),
            "summary": self.summary,
            "base_model": self.base,
            "method": self.method,
            "task": self.task,
            "domains": list(self.domains),
            "languages": list(self.languages),
            "license": self.license,
            "updated": None if self.updated is None else format_time(self.updated),
            "downloads": self.downloads,
        }


class Registry(Protocol):
    """Where packages are published to and fetched from."""

    @property
    def location(self) -> str:
        """The registry as the user wrote it; what a lockfile records."""
        ...

    def packages(self) -> tuple[PackageName, ...]:
        """Return every package's name, sorted."""
        ...

    def search(self, query: Query) -> tuple[Found, ...]:
        """Return the packages that a query describes, the registry's best first; at most `query.limit`."""
        ...

    def versions(self, name: PackageName) -> tuple[Listed, ...]:
        """Return a package's versions, lowest first; a plain adapter without any has one, 0.0.0+g<12 hex>.

        Raises:
            UnsatisfiedError: there is no such package here.
        """
        ...

    def describe(self, ref: PackageRef, *, revision: str | None = None) -> Description:
        """Return what is known of a package without moving its weights.

        revision: the commit that a lockfile pinned, where the registry has commits: that very commit is described,
        wherever tags and branches point now.

        Raises:
            UnsatisfiedError: there is no such version. IntegrityError: the registry's copy is damaged.
            InvalidFileError: its manifest is none that can be read, or it holds what no package may hold.
        """
        ...

    def at_revision(self, name: PackageName, revision: str) -> Description:
        """Return what is known of the package at a branch, tag or commit; its version is what its manifest says.

        Raises:
            UsageError: this registry has no revisions. UnsatisfiedError: there is no such package or revision.
            IntegrityError, InvalidFileError: as `describe`.
        """
        ...

    def fetch(self, description: Description, into: Store, *, progress: Progress) -> StoredPackage:
        """Bring what the store lacks of a package into it, verified against the manifest, the marker last.

        Raises:
            IntegrityError: the registry's bytes are not what the manifest says; the package does not count as stored.
        """
        ...

    def fetch_all(
        self, descriptions: Sequence[Description], into: Store, *, progress: Progress
    ) -> tuple[StoredPackage, ...]:
        """Do as `fetch` for several packages, several files at once where that is faster.

        Raises:
            IntegrityError: the registry's bytes are not what a manifest says; that package does not count as stored.
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

    def set_yanked(self, ref: PackageRef, reason: str | None) -> bool:
        """Mark a version as yanked, with a reason, or take the mark away (None); return False if nothing changed.

        Raises:
            UnsatisfiedError: there is no such version.
        """
        ...
