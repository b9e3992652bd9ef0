"""`adapt outdated`: for everything that is locked, what newer versions its registry has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from packaging.version import Version

from adapterhub.environment import Environment
from adapterhub.errors import AdapterHubError, ExitCode, NetworkError, worst
from adapterhub.fingerprints import Verdict, compare
from adapterhub.ops._graph import asked_by_package, asked_by_project
from adapterhub.progress import SILENT, Progress
from adapterhub.registry import Listed, Registry
from adapterhub.resolve import Policy
from adapterhub.resolve.candidates import Candidates, releases
from adapterhub.spec.base_model import COMMIT_PATTERN, BaseModelRef
from adapterhub.spec.lockfile import LockedPackage
from adapterhub.spec.refs import Requirement

# The Hub answers so many askers of one address without complaint; a folder does not care.
MAX_ASKERS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One locked package as its registry sees it now.

    allowed: the newest version that everything that asks for it allows, None if there is none. latest: the newest that
    may be chosen at all. moved: a branch that is asked for names another commit now. yanked: why the locked version
    should not be used any more, "" for no reason given, None while it may. notes: what a person should know besides.
    error: why the registry could not tell.
    """

    entry: LockedPackage
    allowed: Version | None = None
    latest: Version | None = None
    moved: bool = False
    yanked: str | None = None
    notes: tuple[str, ...] = ()
    error: AdapterHubError | None = None

    @property
    def outdated(self) -> bool:
        """True when there is something newer, whether it is allowed or not."""
        return self.moved or self._is_newer(self.allowed) or self._is_newer(self.latest)

    def _is_newer(self, version: Version | None) -> bool:
        locked = self.entry.version
        if version is None or version == locked:
            return False
        # Derived versions have no order: another one is what the repository holds now.
        return version > locked or (version.local is not None and locked.local is not None)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "alias": self.entry.alias,
            "name": str(self.entry.name),
            "registry": self.entry.registry,
            "locked": str(self.entry.version),
            "allowed": None if self.allowed is None else str(self.allowed),
            "latest": None if self.latest is None else str(self.latest),
            "outdated": self.outdated,
            "yanked": self.yanked,
            "notes": list(self.notes),
            "error": None if self.error is None else self.error.message,
        }


def exit_code(rows: Sequence[Row], *, tell: bool) -> ExitCode:
    """Return the exit code of a look at everything: the worst error; with `tell`, 1 where something is outdated."""
    codes = [row.error.exit_code for row in rows if row.error is not None]
    if tell and any(row.outdated for row in rows):
        codes.append(ExitCode.UNSATISFIED)
    return worst(codes)


def find_outdated(environment: Environment, *, progress: Progress = SILENT) -> tuple[Row, ...]:
    """Ask the registry of every locked package once which versions it has; the answers in the lock's order.

    A package that its registry does not have any more, or does not show, is told in its row.

    Raises:
        NetworkError: a registry did not answer, or this is offline.
    """
    entries = environment.lock.entries
    if not entries:
        return ()
    requirements = _requirements(environment)
    base = environment.lock.base.base if environment.lock.base is not None else None
    policy = Policy(min_age=environment.settings.min_age, now=datetime.now(UTC))
    registries: dict[str, Registry] = {}
    jobs = []
    for entry in entries:
        found = environment.registry_of(entry.name, given=None, cwd=environment.folder)
        registry = registries.setdefault(found.location, found)
        looked = _Look(
            entry=entry, requirements=requirements.get(entry.name.key, ()), registry=registry, base=base, policy=policy
        )
        jobs.append(looked)
    askers = ThreadPoolExecutor(max_workers=min(MAX_ASKERS, len(jobs)), thread_name_prefix="outdated")
    try:
        waiting = [askers.submit(job.row) for job in jobs]
        rows = []
        with progress.task("outdated", total=len(jobs), unit="packages") as task:
            for future in waiting:
                rows.append(future.result())
                task.advance()
        return tuple(rows)
    finally:
        # At the first failure, and at Ctrl-C, nobody who has not begun is to begin.
        askers.shutdown(wait=False, cancel_futures=True)


def _requirements(environment: Environment) -> dict[str, tuple[Requirement, ...]]:
    """Return, by name, all that adapters.yaml and the locked stacks ask of a package."""
    found: dict[str, list[Requirement]] = {}
    for asked in asked_by_project(environment):
        if asked.requirement is not None:
            found.setdefault(asked.requirement.name.key, []).append(asked.requirement)
    for entry in environment.lock.entries:
        for asked in asked_by_package(environment, entry):
            if asked.requirement is not None:
                found.setdefault(asked.requirement.name.key, []).append(asked.requirement)
    return {key: tuple(dict.fromkeys(items)) for key, items in found.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Look:
    """One question to one registry."""

    entry: LockedPackage
    requirements: tuple[Requirement, ...]
    registry: Registry
    base: BaseModelRef | None
    policy: Policy

    def row(self) -> Row:
        """Ask.

        Raises:
            NetworkError: no answer; everything else that goes wrong stands in the row.
        """
        try:
            revision = next((item.revision for item in self.requirements if item.revision is not None), None)
            return self._by_version() if revision is None else self._by_revision(revision)
        except NetworkError:
            raise
        except AdapterHubError as error:
            return Row(entry=self.entry, error=error)

    def _by_version(self) -> Row:
        entry, listed = self.entry, self.registry.versions(self.entry.name)
        candidates = Candidates(
            registry_of=lambda _: _Answered(listed),  # type: ignore[arg-type,return-value]  # all that is asked of it
            locked={},
            base=None,
            policy=self.policy,
        )
        wanted = self.requirements or (Requirement(entry.name),)
        allowed, barred = candidates.sort_out(entry.name, wanted)
        fitting = [item for item in allowed if not self._other_base(item)]
        chosen = (fitting or allowed)[:1]
        newer = [item.version for item in allowed if item not in fitting and item.version > entry.version]
        notes = [f"{version} is made for another base model" for version in newer if fitting]
        notes += [f"{item.version} is {why}" for item, why in barred if item.version > entry.version]
        here = next((item for item in listed if item.version == entry.version), None)
        if here is None and entry.version.local is None:
            notes.append(f"{entry.version} is not in the registry any more")
        open_to_all = [item for item in listed if item.yanked is None and not self._other_base(item)]
        latest = releases(
            sorted((item.version for item in open_to_all), reverse=True),
            wanted,
            prereleases=entry.version.is_prerelease,
        )
        return Row(
            entry=entry,
            allowed=chosen[0].version if chosen else None,
            latest=latest[0] if latest else None,
            yanked=None if here is None else here.yanked,
            notes=tuple(notes),
        )

    def _other_base(self, item: Listed) -> bool:
        if self.base is None or item.base_model is None or self.entry.base_mismatch:
            return False
        return compare(item.base_model, self.base) is Verdict.DIFFERENT

    def _by_revision(self, revision: str) -> Row:
        """Look where a branch or tag points now; a commit points where it always did."""
        entry = self.entry
        if re.fullmatch(COMMIT_PATTERN, revision):
            return Row(entry=entry, allowed=entry.version, latest=entry.version)
        description = self.registry.at_revision(entry.name, revision)
        version, moved = description.ref.version, description.revision != entry.revision
        note = f"{revision} is at {(description.revision or '')[:12]} now, locked is {(entry.revision or '')[:12]}"
        return Row(entry=entry, allowed=version, latest=version, moved=moved, notes=(note,) if moved else ())


@dataclass(frozen=True, slots=True)
class _Answered:
    """A registry that was asked already."""

    listed: tuple[Listed, ...]

    def versions(self, name: object) -> tuple[Listed, ...]:
        del name
        return self.listed
