"""`adapt verify`: hold every byte of what is locked against its digest, and with --fix bring back what is not right."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from adapterhub.environment import Environment
from adapterhub.errors import ExitCode, worst
from adapterhub.ops._inspection import Checker, Fault, Subject
from adapterhub.ops._repair import Failure, drop_damaged, repair
from adapterhub.progress import SILENT, Progress
from adapterhub.store import Store
from adapterhub.store.roots import RootState, roots


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What was looked at, and what is wrong with it.

    files, size: how many files were hashed, and their bytes. fixed: faults that are none any more. faults: those that
    are left. failures: packages that could not be brought back.
    """

    packages: int
    files: int
    size: int
    faults: tuple[Fault, ...] = ()
    fixed: tuple[Fault, ...] = ()
    failures: tuple[Failure, ...] = ()

    @property
    def exit_code(self) -> ExitCode:
        """The code of the worst fault that is left, or OK."""
        return worst([fault.exit_code for fault in self.faults] + [item.error.exit_code for item in self.failures])

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "ok": self.exit_code is ExitCode.OK,
            "packages": self.packages,
            "files": self.files,
            "bytes": self.size,
            "faults": [fault.to_data() for fault in self.faults],
            "fixed": [fault.to_data() for fault in self.fixed],
            "failures": [item.to_data() for item in self.failures],
        }


def verify(
    environment: Environment, *, everything: bool = False, fix: bool = False, progress: Progress = SILENT
) -> Verification:
    """Hash what an environment locks, in the store and where it is laid out; no connection is opened unless fixing.

    everything: the whole store as well, and every other folder that uses it. fix: fetch what is missing or damaged,
    and lay folders out again; files that were changed are kept aside.

    Raises:
        InvalidFileError: a lockfile cannot be read. LocalIOError.
    """
    store = Store(environment.settings.store)
    subjects = _subjects(environment, store, everything=everything)
    checker = Checker(store, threads=environment.settings.threads, progress=progress)
    found = checker.check(subjects)
    loose = checker.check_store(exempt=found) if everything else ()
    files, size = len(checker.digests), sum(checker.sizes.values())
    if not fix or not (found or loose):
        return Verification(packages=len(subjects), files=files, size=size, faults=(*_flat(found), *loose))
    failures = repair(store, found, checker, progress=progress)
    drop_damaged(store, loose)
    again = Checker(store, threads=environment.settings.threads, progress=progress)
    left = _flat(again.check(list(found)))
    if loose:
        left = (*left, *again.check_store(exempt={}, only={fault.path for fault in loose}))
    return Verification(
        packages=len(subjects),
        files=files,
        size=size,
        faults=left,
        fixed=tuple(fault for fault in (*_flat(found), *loose) if fault.path not in {item.path for item in left}),
        failures=failures,
    )


def _flat(found: Mapping[Subject, tuple[Fault, ...]]) -> tuple[Fault, ...]:
    """Return the faults of all subjects, one a path: packages share blobs."""
    return tuple({fault.path: fault for faults in found.values() for fault in faults}.values())


def _subjects(environment: Environment, store: Store, *, everything: bool) -> list[Subject]:
    environments = [environment]
    if everything:
        known = {os.path.realpath(environment.folder)}
        others = [root.folder for root in roots(store) if root.state is RootState.PRESENT]
        for folder in (environment.settings.user_environment, *others):
            if os.path.realpath(folder) not in known:
                known.add(os.path.realpath(folder))
                environments.append(Environment(folder=folder, settings=environment.settings))
    return [Subject(environment=place, entry=entry) for place in environments for entry in place.lock.entries]
