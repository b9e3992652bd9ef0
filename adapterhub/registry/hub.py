"""The Hugging Face Hub as a registry: a package is a repository, a version is a tag.

    org/name                        one package
      tag vX.Y.Z                    one version: the commit with its manifest, config, weights and card
      adapter_index.json on main    what is known of the versions without a look at each (`spec.index`)

All of a version is read at one commit, so a branch that moves meanwhile changes nothing. A repository with an adapter
and no version tag, as PEFT's `push_to_hub` leaves it, has one version: 0.0.0+g<first 12 digits of main's commit>.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from packaging.version import Version

from adapterhub.documents import parse_json
from adapterhub.errors import IntegrityError, InvalidFileError, UnsatisfiedError
from adapterhub.progress import Progress
from adapterhub.registry._hub_client import HubClient, Refs, Repository
from adapterhub.registry._hub_describe import Snapshot, derived_version, describe_snapshot
from adapterhub.registry._hub_download import DAMAGED, Download, Source
from adapterhub.registry._hub_together import together
from adapterhub.registry.base import Description, Found, Listed, Published, Query
from adapterhub.spec.digest import Digest
from adapterhub.spec.index import INDEX_FILE, AdapterIndex, IndexRow
from adapterhub.spec.manifest import CONFIG_FILE, MANIFEST_FILE, Manifest
from adapterhub.spec.refs import PackageName, PackageRef, parse_version
from adapterhub.store import Store, StoredPackage

if TYPE_CHECKING:
    from adapterhub.package import Package

LIBRARY_TAG = "adapterhub"
"""The tag of a model card by which the Hub lists packages."""


class HubRegistry:
    """The packages of the Hub that HF_ENDPOINT names; what was asked once is not asked again by the same object."""

    def __init__(self, *, offline: bool = False) -> None:
        self.client = HubClient(offline=offline)
        self._repositories: dict[PackageName, Repository] = {}
        self._refs: dict[PackageName, Refs] = {}
        self._snapshots: dict[tuple[PackageName, str], Snapshot] = {}

    @property
    def location(self) -> str:
        """`hub`: which one it is, HF_ENDPOINT says, and no lockfile."""
        return "hub"

    def packages(self) -> tuple[PackageName, ...]:
        """Return the name of every package that was published by adapterhub and that the token may see, sorted."""
        found = set()
        with self.client.guarded("list the packages", self.client.endpoint):
            for model in self.client.api.list_models(filter=LIBRARY_TAG):
                try:
                    found.add(PackageName.parse(model.id))
                except ValueError:
                    continue
        return tuple(sorted(found, key=lambda name: name.key))

    def search(self, query: Query) -> tuple[Found, ...]:
        """Return the packages that a query describes, the Hub's best first."""
        from adapterhub.registry._hub_search import search

        return search(self.client, query)

    def versions(self, name: PackageName) -> tuple[Listed, ...]:
        """Return a package's versions, lowest first, by its tags; what its index says of them beside.

        Raises:
            UnsatisfiedError: there is no such package here, it is private, or its name is spelled otherwise.
        """
        commits = self._versions(name)
        if not commits:
            return (self._plain(name),)
        head = self._refs_of(name).head
        if head in commits.values():
            # Mostly the newest version, which is mostly the one that is wanted.
            self._snapshot(name, head).look_ahead(INDEX_FILE)
        index = self._index(name)
        return tuple(_listed(version, commits[version], index.row(version)) for version in sorted(commits))

    def describe(self, ref: PackageRef, *, revision: str | None = None) -> Description:
        """Return what is known of a package by kilobytes: manifest, config, sizes and digests, the weights' header.

        Raises:
            UnsatisfiedError: there is no such version. IntegrityError: the Hub's copy is damaged.
            InvalidFileError: its manifest is none that can be read, or it holds what no package may hold.
        """
        if revision is not None:
            return describe_snapshot(self._snapshot(ref.name, revision), ref.version)
        snapshot = self._snapshot(ref.name, self._commit_of_version(ref))
        if MANIFEST_FILE not in snapshot.files and self._index(ref.name).row(ref.version) is not None:
            raise IntegrityError("the package has no manifest", where=snapshot.where(MANIFEST_FILE), hint=DAMAGED)
        return describe_snapshot(snapshot, ref.version, notes=self._notes(ref.name))

    def at_revision(self, name: PackageName, revision: str) -> Description:
        """Return what is known of the package at a branch, tag or commit; its version is what its manifest says.

        Raises:
            UnsatisfiedError: there is no such package or revision. IntegrityError, InvalidFileError: as `describe`.
        """
        refs = self._refs_of(name)
        commit = refs.branches.get(revision) or refs.tags.get(revision) or self.client.commit_of(str(name), revision)
        return describe_snapshot(self._snapshot(name, commit), None, notes=self._notes(name))

    def fetch(self, description: Description, into: Store, *, progress: Progress) -> StoredPackage:
        """Bring what the store lacks of a package into it, verified against the manifest, the marker last.

        Raises:
            IntegrityError: the Hub's bytes are not what the manifest says; the package does not count as stored.
            NetworkError: the connection was lost; what came is kept, and the next download goes on from there.
        """
        return self.fetch_all((description,), into, progress=progress)[0]

    def fetch_all(
        self, descriptions: Sequence[Description], into: Store, *, progress: Progress
    ) -> tuple[StoredPackage, ...]:
        """Do as `fetch` for several packages, a few files at a time; no marker is written before all are here.

        Raises:
            IntegrityError: bytes are not what a manifest says; none of the packages counts as stored.
            NetworkError: the connection was lost; what came is kept, and the next download goes on from there.
        """
        waiting: dict[Digest, Source] = {}
        for description in descriptions:
            commit = description.revision or self._commit_of_version(description.ref)
            snapshot = self._snapshot(description.ref.name, commit)
            for entry in into.missing(description.stored.files):
                known = snapshot.known(entry)
                if known is not None:
                    into.add_blob(io.BytesIO(known), entry, where=snapshot.where(entry.path))
                else:
                    waiting.setdefault(entry.digest, snapshot.source(entry))
        Download(self.client, into, progress).run(waiting.values())
        for description in descriptions:
            if description.manifest_bytes is not None:
                into.add_manifest(description.manifest_bytes)
            into.add_ref(description.stored)
        return tuple(description.stored for description in descriptions)

    def published(self, ref: PackageRef, manifest: Manifest) -> bool:
        """Say whether this very manifest is published under a ref; asked before anything is written.

        Raises:
            UnsatisfiedError: that version is there with other bytes, or a name that differs in case alone is taken.
        """
        from adapterhub.registry._hub_publish import published

        return published(self.client, ref, manifest)

    def publish(self, package: Package, name: PackageName, *, progress: Progress) -> Published:
        """Put a package into a repository under a name; the same bytes again change nothing.

        Raises:
            UnsatisfiedError: that version is there with other bytes, or a name that differs in case alone is taken.
            IntegrityError: the package's files are not what its manifest says.
        """
        from adapterhub.registry._hub_publish import publish

        self._forget(name)
        return publish(self.client, package, name, progress=progress)

    def set_yanked(self, ref: PackageRef, reason: str | None) -> bool:
        """Mark a version as yanked, with a reason, or take the mark away (None); return False if nothing changed.

        Raises:
            UnsatisfiedError: there is no such version.
        """
        from adapterhub.registry._hub_publish import set_yanked

        self._forget(ref.name)
        return set_yanked(self.client, ref, reason)

    def _forget(self, name: PackageName) -> None:
        self._repositories.pop(name, None)
        self._refs.pop(name, None)

    def _repository(self, name: PackageName) -> Repository:
        """Look a package up; the Hub takes a name in any case, and we take one.

        Raises:
            UnsatisfiedError: there is none, or its name is spelled otherwise.
        """
        if name not in self._repositories:
            found = self.client.repository(str(name))
            if found.name != str(name) and found.name.casefold() == name.key:
                raise UnsatisfiedError(
                    "there is no package of this name; one differs in upper and lower case",
                    where=str(name),
                    hint=f"did you mean {found.name}?",
                )
            self._repositories[name] = found
        return self._repositories[name]

    def _refs_of(self, name: PackageName) -> Refs:
        if name not in self._refs:
            asks: list[Callable[[], Repository | Refs]] = [
                partial(self._repository, name),
                partial(self.client.refs, str(name)),
            ]
            _, refs = together(asks)
            assert isinstance(refs, Refs)
            self._refs[name] = refs
        return self._refs[name]

    def _notes(self, name: PackageName) -> tuple[str, ...]:
        there = self._repository(name).name
        return () if there == str(name) else (f"{name} has moved to {there}: require it by that name",)

    def _snapshot(self, name: PackageName, commit: str) -> Snapshot:
        if (name, commit) not in self._snapshots:
            self._snapshots[name, commit] = Snapshot(self.client, name, commit)
        return self._snapshots[name, commit]

    def _versions(self, name: PackageName) -> dict[Version, str]:
        """Return the commit of each version that a tag names."""
        found = {}
        for tag, commit in self._refs_of(name).tags.items():
            try:
                found[parse_version(tag[1:] if tag.startswith("v") else "")] = commit
            except ValueError:
                continue
        return found

    def _commit_of_version(self, ref: PackageRef) -> str:
        """Return the commit of a version.

        Raises:
            UnsatisfiedError: there is no such version; the hint names those that are there.
        """
        commits, refs = self._versions(ref.name), self._refs_of(ref.name)
        if ref.version in commits:
            return commits[ref.version]
        if ref.version.local is not None:
            short = ref.version.local.removeprefix("g")
            for commit in (refs.head, *refs.branches.values(), *refs.tags.values()):
                if commit.startswith(short):
                    return commit
        available = sorted(commits)[-10:] or [self._plain(ref.name).version]
        raise UnsatisfiedError(
            f"the Hub has no {ref}",
            where=str(ref.name),
            hint=f"available: {', '.join(str(version) for version in available)}",
        )

    def _plain(self, name: PackageName) -> Listed:
        """Return the one version of a plain adapter's repository.

        Raises:
            UnsatisfiedError: it holds no adapter, or a package of which no version was published.
        """
        head, modified = self._refs_of(name).head, self._repository(name).modified
        snapshot = self._snapshot(name, head)
        if MANIFEST_FILE in snapshot.files:
            raise UnsatisfiedError(
                "the repository holds a package, and no version of it is published (there is no tag vX.Y.Z)",
                where=str(name),
                hint=f"take what lies on its main branch: {name}#main",
            )
        if CONFIG_FILE not in snapshot.files:
            raise UnsatisfiedError(
                f"the repository holds no adapter: neither {MANIFEST_FILE} nor {CONFIG_FILE}",
                where=str(name),
                hint=f"look at {self.client.endpoint}/{name}",
            )
        return Listed(version=derived_version(head), published=modified, revision=head)

    def _index(self, name: PackageName) -> AdapterIndex:
        """Return the index on main; one that is damaged or of a newer format says nothing, and the tags stand."""
        snapshot = self._snapshot(name, self._refs_of(name).head)
        try:
            data = snapshot.read(INDEX_FILE)
            if data is None:
                return AdapterIndex()
            return AdapterIndex.from_data(parse_json(data, where=INDEX_FILE), where=snapshot.where(INDEX_FILE))
        except (InvalidFileError, IntegrityError):
            return AdapterIndex()


def _listed(version: Version, commit: str, row: IndexRow | None) -> Listed:
    if row is None:
        return Listed(version=version, revision=commit)
    return Listed(
        version=version,
        published=row.published,
        yanked=row.yanked,
        base_model=row.base_model,
        requires=row.requires,
        revision=commit,
    )
