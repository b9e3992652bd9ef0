"""Bringing back what `adapt verify` found missing or damaged: from the laid-out folder, else from the registry."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from adapterhub.errors import AdapterHubError, IntegrityError
from adapterhub.files import local_io
from adapterhub.ops._inspection import Checker, Fault, Subject, What
from adapterhub.ops._place import State, place, state_of, take_away
from adapterhub.progress import Progress
from adapterhub.spec.lockfile import LOCK_FILE
from adapterhub.spec.manifest import MANIFEST_FILE
from adapterhub.store import VERIFIED_TIME, Store
from adapterhub.store.leases import lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A package that could not be brought back, and why."""

    ref: str
    error: AdapterHubError

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"package": self.ref, "message": str(self.error), "hint": self.error.hint}


def repair(
    store: Store, found: Mapping[Subject, tuple[Fault, ...]], checker: Checker, *, progress: Progress
) -> tuple[Failure, ...]:
    """Bring every package with faults back, as far as that can be done; return those that could not."""
    failures = {}
    with lease(store, [subject.stored for subject in found]):
        for subject, faults in found.items():
            try:
                for fault in faults:
                    _distrust(fault.path)
                _bring_back(store, subject, checker, progress=progress)
                if any(fault.what is What.EXTRA for fault in faults):
                    take_away(subject.folder, progress=progress)
                if state_of(subject.folder, subject.stored) not in (State.FOREIGN, State.SAME):
                    place(store, subject.stored, subject.folder, progress=progress)
            except AdapterHubError as error:
                failures[str(subject.entry.ref)] = Failure(ref=str(subject.entry.ref), error=error)
    return tuple(failures.values())


def drop_damaged(store: Store, faults: tuple[Fault, ...]) -> None:
    """Remove from the store the damaged files, and markers of packages with lost files, that no lockfile here names."""
    for fault in faults:
        if fault.what is What.DAMAGED or fault.path.is_relative_to(store.root / "refs"):
            with local_io(fault.path, "remove the damaged file"):
                fault.path.unlink(missing_ok=True)


def _distrust(path: Path) -> None:
    """Take the stamp off a file whose bytes are wrong, so that everybody who looks at it hashes it."""
    with local_io(path, "mark the file as damaged"), suppress(FileNotFoundError, NotADirectoryError):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode) and status.st_mtime_ns == VERIFIED_TIME:
            os.utime(path)


def _bring_back(store: Store, subject: Subject, checker: Checker, *, progress: Progress) -> None:
    """Make the store have a package.

    Raises:
        IntegrityError: the registry has other bytes than were locked. UnsatisfiedError, NetworkError, LocalIOError.
    """
    stored, folder = subject.stored, subject.folder
    if store.find(stored.ref, stored.identity) is not None:
        return
    for entry in store.missing(stored.files):
        own = folder / entry.path
        if checker.digests.get(own) == entry.digest:
            with local_io(own, "read the file"), own.open("rb") as stream:
                store.add_blob(stream, entry, where=str(own))
    if stored.manifest is not None and checker.digests.get(folder / MANIFEST_FILE) == stored.manifest:
        with local_io(folder, "read the manifest"):
            store.add_manifest((folder / MANIFEST_FILE).read_bytes())
    if not store.missing(stored.files) and (stored.manifest is None or store.manifest_bytes(stored.manifest)):
        store.add_ref(stored)
        return
    environment, entry_locked = subject.environment, subject.entry
    registry = environment.registry_of(entry_locked.name, given=None, cwd=environment.folder)
    description = registry.describe(entry_locked.ref, revision=entry_locked.revision)
    if description.stored != stored:
        raise IntegrityError(
            f"{entry_locked.ref} is not what {LOCK_FILE} recorded: it was published anew with other bytes",
            where=registry.location,
            hint=f"if you trust the new one: adapt update {entry_locked.alias or entry_locked.name}",
        )
    registry.fetch(description, store, progress=progress)
