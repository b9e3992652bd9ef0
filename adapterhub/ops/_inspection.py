"""Looking at locked packages byte by byte: what the store has of them, and what lies where they are laid out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from adapterhub.environment import Environment
from adapterhub.errors import ExitCode
from adapterhub.ops._hashing import hash_files
from adapterhub.ops._place import MARKER_FILE, file_names, read_marker
from adapterhub.progress import Progress
from adapterhub.spec.digest import Digest
from adapterhub.spec.lockfile import LockedPackage
from adapterhub.spec.manifest import MANIFEST_FILE
from adapterhub.store import Store, StoredPackage
from adapterhub.store.inventory import Kind, inventory
from adapterhub.store.roots import stored_of


class What(Enum):
    """What is wrong with a path; the value is the word that people read."""

    MISSING = "missing"
    DAMAGED = "damaged"
    CHANGED = "changed"
    EXTRA = "extra"
    FOREIGN = "foreign"
    OTHER = "other"


# What is merely not there, or not yet what is locked, is unsatisfied; all else is no longer what was installed.
_EXITS = {What.MISSING: ExitCode.UNSATISFIED, What.OTHER: ExitCode.UNSATISFIED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One path that is not what it has to be; `ref` is the package it belongs to, None for one of no lockfile."""

    what: What
    path: Path
    message: str
    ref: str | None = None
    hint: str = "adapt verify --fix"

    @property
    def exit_code(self) -> ExitCode:
        """What this fault alone would end the process with."""
        return _EXITS.get(self.what, ExitCode.INTEGRITY)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "what": self.what.value,
            "path": str(self.path),
            "package": self.ref,
            "message": self.message,
            "hint": self.hint,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One locked package, with the environment that locks it."""

    environment: Environment
    entry: LockedPackage

    @property
    def stored(self) -> StoredPackage:
        """The package as the store names it."""
        return stored_of(self.entry)

    @property
    def folder(self) -> Path:
        """Where it is laid out."""
        return self.environment.path_of(self.entry)


class Checker:
    """Looks at packages; every file is hashed once, whatever its time stamp says, all of them in one go.

    digests: what was found at each path that was hashed. sizes: their sizes in bytes.
    """

    def __init__(self, store: Store, *, threads: int | None, progress: Progress) -> None:
        self.store = store
        self.digests: dict[Path, Digest | OSError] = {}
        self.sizes: dict[Path, int] = {}
        self._threads = threads
        self._progress = progress

    def check(self, subjects: list[Subject]) -> dict[Subject, tuple[Fault, ...]]:
        """Return the faults of each subject that has any."""
        self._hash(path for subject in subjects for path in self._paths(subject))
        found = {subject: (*self._stored(subject), *self._laid_out(subject)) for subject in subjects}
        return {subject: faults for subject, faults in found.items() if faults}

    def check_store(
        self, *, exempt: dict[Subject, tuple[Fault, ...]], only: set[Path] | None = None
    ) -> tuple[Fault, ...]:
        """Hash every blob and manifest, and read every marker; `exempt` are faults that are known already."""
        known = {fault.path for faults in exempt.values() for fault in faults}
        items = [item for item in inventory(self.store) if only is None or item.path in only]
        items = [item for item in items if item.path not in known]
        self._hash(item.path for item in items if item.kind in (Kind.BLOB, Kind.MANIFEST))
        faults: list[Fault] = []
        for item in items:
            if item.kind in (Kind.BLOB, Kind.MANIFEST) and item.digest is not None:
                faults += self._compared(item.path, item.digest, None, What.DAMAGED)
            elif item.kind is Kind.MARKER:
                faults += self._marker(item.path)
            elif item.kind is Kind.UNKNOWN:
                hint = f"look at it, then remove {item.path}"
                faults.append(Fault(what=What.EXTRA, path=item.path, message="is none of the store's files", hint=hint))
        return tuple(faults)

    def _marker(self, path: Path) -> Iterator[Fault]:
        package = self.store.package_at(path)
        if package is None or self.store.ref_path(package.ref, package.identity) != path:
            yield Fault(what=What.DAMAGED, path=path, message="the marker of a package cannot be read")
            return
        lost = [entry.path for entry in package.files if not self.store.blob_path(entry.digest).is_file()]
        if package.manifest is not None and not self.store.manifest_path(package.manifest).is_file():
            lost.append(MANIFEST_FILE)
        if lost:
            message = f"the store lacks {', '.join(lost)} of this package"
            yield Fault(what=What.MISSING, path=path, message=message, ref=str(package.ref))

    def _paths(self, subject: Subject) -> Iterator[Path]:
        """Walk over what has to be hashed of a package: what the store and its folder have of it."""
        stored, folder = subject.stored, subject.folder
        yield from (self.store.blob_path(entry.digest) for entry in stored.files)
        yield from (folder / entry.path for entry in stored.files)
        if stored.manifest is not None:
            yield self.store.manifest_path(stored.manifest)
            yield folder / MANIFEST_FILE

    def _hash(self, paths: Iterable[Path]) -> None:
        wanted = [p for p in dict.fromkeys(paths) if p not in self.digests and p.is_file() and not p.is_symlink()]
        self.digests |= hash_files(wanted, progress=self._progress, threads=self._threads)
        self.sizes |= {path: path.stat().st_size for path in wanted if path.is_file()}

    def _compared(self, path: Path, wanted: Digest, ref: str | None, what: What) -> Iterator[Fault]:
        """Yield what is wrong with one file, if anything is."""
        found = self.digests.get(path)
        if found is None:
            if os.path.lexists(path):
                yield Fault(what=what, path=path, message="is no regular file", ref=ref)
            else:
                yield Fault(what=What.MISSING, path=path, message="is not there", ref=ref)
        elif isinstance(found, OSError):
            yield Fault(what=what, path=path, message=f"cannot be read: {found.strerror or found}", ref=ref)
        elif found != wanted:
            size = self.sizes.get(path)
            message = f"its bytes differ (sha256 {found.short}…, not {wanted.short}…; {size} bytes)"
            yield Fault(what=what, path=path, message=message, ref=ref)

    def _stored(self, subject: Subject) -> Iterator[Fault]:
        stored, ref = subject.stored, str(subject.entry.ref)
        for entry in stored.files:
            yield from self._compared(self.store.blob_path(entry.digest), entry.digest, ref, What.DAMAGED)
        if stored.manifest is not None:
            yield from self._compared(self.store.manifest_path(stored.manifest), stored.manifest, ref, What.DAMAGED)
        marker = self.store.ref_path(stored.ref, stored.identity)
        if self.store.package_at(marker) != stored:
            there = marker.is_file()
            message = "the store's marker cannot be read" if there else "the store has no marker of this package"
            yield Fault(what=What.DAMAGED if there else What.MISSING, path=marker, message=message, ref=ref)

    def _laid_out(self, subject: Subject) -> Iterator[Fault]:
        stored, folder, ref = subject.stored, subject.folder, str(subject.entry.ref)
        names = set(file_names(folder)) if folder.is_dir() and not folder.is_symlink() else set[str]()
        if not names and not (os.path.lexists(folder) and not folder.is_dir()) and not folder.is_symlink():
            yield Fault(what=What.MISSING, path=folder, message="is not laid out", ref=ref)
            return
        recorded = read_marker(folder) if names else None
        if recorded is None:
            hint = f"move {folder} away, then: adapt verify --fix"
            yield Fault(what=What.FOREIGN, path=folder, message="is not of adapterhub's making", ref=ref, hint=hint)
            return
        if recorded != stored:
            message = f"holds {recorded.ref}, and {subject.entry.ref} is locked"
            if recorded.ref == stored.ref:
                message = f"holds another package of the name {recorded.ref}"
            yield Fault(what=What.OTHER, path=folder, message=message, ref=ref, hint="adapt sync")
            return
        for entry in stored.files:
            yield from self._compared(folder / entry.path, entry.digest, ref, What.CHANGED)
        ours = {MARKER_FILE, *(entry.path for entry in stored.files)}
        if stored.manifest is not None:
            ours.add(MANIFEST_FILE)
            yield from self._compared(folder / MANIFEST_FILE, stored.manifest, ref, What.CHANGED)
        for name in sorted(names - ours):
            yield Fault(what=What.EXTRA, path=folder / name, message="is no file of the package", ref=ref)
