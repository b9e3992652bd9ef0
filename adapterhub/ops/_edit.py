"""Changing adapters.yaml and adapters.lock while others may do the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from adapterhub.documents import read_lockfile, read_project, write_lockfile, write_project
from adapterhub.environment import ADAPTERS_FOLDER, Environment
from adapterhub.errors import LocalIOError
from adapterhub.files import local_io
from adapterhub.spec.lockfile import LockedBase, LockedPackage, Lockfile
from adapterhub.spec.project import PROJECT_FILE, Project
from adapterhub.spec.refs import PackageName, Requirement

_LOCK_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one command changes: requirements set (None: taken out), lock entries set and dropped, the base locked.

    set_base: whether `base` replaces the lock's base at all.
    """

    adapters: Mapping[str, Requirement | None] = field(default_factory=lambda: MappingProxyType({}))
    entries: tuple[LockedPackage, ...] = ()
    dropped: tuple[PackageName, ...] = ()
    base: LockedBase | None = None
    set_base: bool = False

    def of_project(self, project: Project) -> Project:
        """Return the project with the change made."""
        for alias, requirement in self.adapters.items():
            if requirement is None:
                project = project.without_adapter(alias)
            elif project.adapters.get(alias) != requirement:
                project = project.with_adapter(alias, requirement)
        return project

    def of_lock(self, lock: Lockfile) -> Lockfile:
        """Return the lock with the change made."""
        gone = {name.key for name in self.dropped} | {entry.name.key for entry in self.entries}
        kept = [entry for entry in lock.entries if entry.name.key not in gone]
        entries = tuple(sorted([*kept, *self.entries], key=lambda entry: entry.name.key))
        changed = replace(lock, entries=entries, base=self.base if self.set_base else lock.base)
        return changed.settled(PROJECT_FILE)


def edit(environment: Environment, change: Change) -> None:
    """Make a change to what the files say now, adapters.yaml first, the lockfile last; unchanged files are not touched.

    A file lock keeps two commands from losing each other's change. Where locks do not work (some network drives) the
    last one to rename wins, and both files are still whole.

    Raises:
        LocalIOError: the disk said no, or another command held the lock for a minute.
    """
    if _is_made(environment.folder, change):
        return
    with _locked(environment.folder / ADAPTERS_FOLDER / ".lock"):
        project, lock = _read(environment.folder)
        if (changed := change.of_project(project)) != project:
            write_project(environment.folder, changed)
        write_lockfile(environment.folder, change.of_lock(lock))


def _read(folder: Path) -> tuple[Project, Lockfile]:
    project = read_project(folder) if (folder / PROJECT_FILE).exists() else Project()
    return project, read_lockfile(folder)


def _is_made(folder: Path, change: Change) -> bool:
    project, lock = _read(folder)
    return change.of_project(project) == project and change.of_lock(lock) == lock


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    with local_io(path, "lock the environment"):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=_LOCK_SECONDS)
    held = True
    try:
        lock.acquire()
    except Timeout as error:
        raise LocalIOError(
            "another adapt command has been changing this environment for a minute",
            where=str(path),
            hint="wait for it to end, or end it, then run the same command again",
        ) from error
    except (OSError, NotImplementedError):
        held = False  # no locks on this file system: the renames are atomic all the same
    try:
        yield
    finally:
        if held:
            lock.release()
