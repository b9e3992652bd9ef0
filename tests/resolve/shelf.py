"""A registry in memory that counts what it is asked, and short ways to ask the resolver."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache

from adapterhub.errors import AdapterHubError, UnsatisfiedError
from adapterhub.package import Package
from adapterhub.progress import Progress
from adapterhub.registry import Description, Found, Listed, Published, Query
from adapterhub.resolve import Choice, Locked, Policy, Resolution, Wanted, resolve
from adapterhub.spec.base_model import BaseFingerprints, BaseModelRef
from adapterhub.spec.digest import Digest, FileEntry
from adapterhub.spec.manifest import CONFIG_FILE, Manifest, StackRequirement
from adapterhub.spec.refs import PackageName, PackageRef, Requirement, parse_version
from adapterhub.store import Store, StoredPackage

NOW = datetime(2026, 6, 1, tzinfo=UTC)
POLICY = Policy(now=NOW)


def base(name: str) -> BaseModelRef:
    """Return a base model that is told from others by its weights."""
    return BaseModelRef(id=name, fingerprints=BaseFingerprints(weights=Digest.of(name.encode())))


OURS, OTHER = base("ours"), base("other")


@cache
def _member(text: str) -> StackRequirement:
    return StackRequirement(requirement=Requirement.parse(text))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One published version: a stack if it requires something; `broken` is raised when it is described."""

    version: str
    requires: tuple[str, ...] = ()
    made_for: BaseModelRef = OURS
    yanked: str | None = None
    days_old: int | None = 365
    commit: str | None = None
    broken: AdapterHubError | None = None

    def listed(self, *, indexed: bool) -> Listed:
        """Return what a listing tells: all, or what a folder's does."""
        return Listed(
            version=parse_version(self.version),
            published=None if self.days_old is None else NOW - timedelta(days=self.days_old),
            yanked=self.yanked,
            base_model=self.made_for if indexed else None,
            requires=self.members if indexed else None,
            revision=self.commit,
        )

    @property
    def members(self) -> tuple[StackRequirement, ...]:
        return tuple(_member(text) for text in self.requires)

    def manifest(self, name: str) -> Manifest:
        return Manifest(
            name=name,
            version=parse_version(self.version),
            kind="stack" if self.requires else "adapter",
            method=None if self.requires else "lora",
            base_model=self.made_for,
            files=() if self.requires else (FileEntry(path=CONFIG_FILE, size=2, digest=Digest.of(b"{}")),),
            requires=self.members,
        )


@dataclass
class Shelf:
    """A registry: rows by name; `revisions` by name and branch, tag or commit. indexed: listings tell everything.

    It keeps the whole protocol; what resolving must not touch is refused.
    """

    rows: Mapping[str, Sequence[Row]]
    revisions: Mapping[str, Mapping[str, Row]] = field(default_factory=dict)
    indexed: bool = False
    location: str = "the shelf"
    asked: Counter[str] = field(default_factory=Counter)

    def packages(self) -> tuple[PackageName, ...]:
        raise AssertionError("resolving lists no registry")

    def search(self, query: Query) -> tuple[Found, ...]:
        raise AssertionError("resolving searches no registry")

    def versions(self, name: PackageName) -> tuple[Listed, ...]:
        self.asked[f"list {name}"] += 1
        if str(name) not in self.rows:
            raise UnsatisfiedError(f"the registry has no package {name}", where=self.location, hint="look again")
        found = [row.listed(indexed=self.indexed) for row in self.rows[str(name)]]
        return tuple(sorted(found, key=lambda item: item.version))

    def describe(self, ref: PackageRef, *, revision: str | None = None) -> Description:
        self.asked[f"describe {ref}"] += 1
        row = next(row for row in self.rows[str(ref.name)] if parse_version(row.version) == ref.version)
        return self._described(ref.name, row)

    def at_revision(self, name: PackageName, revision: str) -> Description:
        self.asked[f"at {name}#{revision}"] += 1
        row = self.revisions.get(str(name), {}).get(revision)
        if row is None:
            raise UnsatisfiedError(f"{name} has no revision {revision}", where=self.location)
        return self._described(name, row)

    def _described(self, name: PackageName, row: Row) -> Description:
        if row.broken is not None:
            raise row.broken
        manifest = row.manifest(name.name)
        return Description(
            ref=PackageRef(name, manifest.version),
            manifest=manifest,
            manifest_bytes=None,
            config={},
            header=None,
            revision=row.commit,
        )

    def fetch(self, description: Description, into: Store, *, progress: Progress) -> StoredPackage:
        raise AssertionError("resolving fetches nothing")

    def published(self, ref: PackageRef, manifest: Manifest) -> bool:
        raise AssertionError("resolving publishes nothing")

    def publish(self, package: Package, name: PackageName, *, progress: Progress) -> Published:
        raise AssertionError("resolving publishes nothing")

    def set_yanked(self, ref: PackageRef, reason: str | None) -> bool:
        raise AssertionError("resolving yanks nothing")


def shelf(rows: Mapping[str, Sequence[str | Row]], **more: object) -> Shelf:
    """Return a registry of rows; a bare version stands for an adapter."""
    made = {
        name: [item if isinstance(item, Row) else Row(version=item) for item in items] for name, items in rows.items()
    }
    return replace(Shelf(rows=made), asked=Counter(), **more)  # type: ignore[arg-type]


def ask(
    registry: Shelf,
    *wanted: str,
    locked: Mapping[str, Locked] | None = None,
    base: BaseModelRef | None = None,
    policy: Policy = POLICY,
    registry_of: Callable[[PackageName], Shelf] | None = None,
) -> Resolution:
    """Resolve what adapters.yaml wants against one registry."""
    return resolve(
        [Wanted(Requirement.parse(text), "adapters.yaml") for text in wanted],
        registry_of=registry_of or (lambda name: registry),
        locked=locked or {},
        base=base,
        policy=policy,
    )


def refs(resolution: Resolution) -> list[str]:
    """Return what was chosen, as `org/name@version`."""
    return [str(choice.ref) for choice in resolution.choices]


def lock(resolution: Resolution, *, location: str = "the shelf") -> dict[str, Locked]:
    """Return what a lockfile would tell of a resolution."""
    return {choice.ref.name.key: locked_choice(choice, location) for choice in resolution.choices}


def locked_choice(
    choice: Choice, location: str = "the shelf", asked: str | None = None, *, mismatch: bool = False
) -> Locked:
    """Return what a lockfile would tell of one choice."""
    return Locked(
        ref=choice.ref,
        location=location,
        revision=choice.revision,
        requires=choice.requires,
        base_mismatch=mismatch,
        asked=asked,
    )
