"""`adapt install`: from a requirement, or from adapters.yaml and its lock, to folders that PEFT loads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from adapterhub.environment import Environment
from adapterhub.errors import IntegrityError, UsageError
from adapterhub.ops import _edit, _fits
from adapterhub.ops._place import State, place, require_ours, state_of, take_away
from adapterhub.progress import SILENT, Progress
from adapterhub.registry import Description, Registry
from adapterhub.resolve import choose, require_adapter
from adapterhub.spec.digest import FileEntry
from adapterhub.spec.lockfile import LOCK_FILE, LockedBase, LockedPackage
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.project import PROJECT_FILE
from adapterhub.spec.refs import Requirement, check_alias
from adapterhub.store import Store, StoredPackage


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPackage:
    """One package to be installed.

    requirement: what adapters.yaml will say. entry: what the lock will say. fetch: the payload files that the store
    lacks, and source: where they come from (None when the store has all). state: what lies in the alias folder now.
    """

    alias: str
    requirement: Requirement
    entry: LockedPackage
    stored: StoredPackage
    fetch: tuple[FileEntry, ...] = ()
    source: tuple[Registry, Description] | None = None
    state: State = State.ABSENT
    reasons: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """True when something of it is not in place yet."""
        return self.source is not None or self.state is not State.SAME


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallPlan(Plan):
    """What will be fetched, laid out and written; `removed` are lock entries that adapters.yaml no longer asks for."""

    environment: Environment
    packages: tuple[PlannedPackage, ...] = ()
    removed: tuple[LockedPackage, ...] = ()
    base: LockedBase | None = None

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return where the adapters go."""
        owner = "your own environment" if self.environment.is_user else "project"
        return (("environment", f"{self.environment.folder} ({owner})"),)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        # Plan.to_data by name: `super()` without arguments does not work in a dataclass with slots.
        return {**Plan.to_data(self), "packages": [_told(item, self.environment) for item in self.packages]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What an installation left: the plan's packages, all of them in place."""

    plan: InstallPlan

    @property
    def paths(self) -> Mapping[str, Path]:
        """The folder of each alias."""
        return {item.alias: self.plan.environment.adapter_path(item.alias) for item in self.plan.packages}

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        environment = self.plan.environment
        return {
            "environment": str(environment.folder),
            "installed": [_told(item, environment) for item in self.plan.packages],
            "removed": [entry.alias for entry in self.plan.removed],
            "warnings": list(self.plan.warnings),
        }


def _told(item: PlannedPackage, environment: Environment) -> dict[str, object]:
    return {
        "alias": item.alias,
        "name": str(item.entry.name),
        "version": str(item.entry.version),
        "registry": item.entry.registry,
        "path": str(environment.adapter_path(item.alias)),
        "fetched_bytes": sum(entry.size for entry in item.fetch),
        "base_mismatch": item.entry.base_mismatch,
        "reasons": list(item.reasons),
    }


def parse_requirement(text: str) -> Requirement:
    """Read what a person asks for: `org/name`, `org/name@1.2.0` or `org/name>=1.2,<2`.

    Raises:
        UsageError: it is of another form.
    """
    try:
        return Requirement.parse(text)
    except ValueError as error:
        hint = "adapt install org/name, org/name@X.Y.Z, or 'org/name>=1.2,<2'"
        raise UsageError(str(error), where=text, hint=hint) from error


def plan_install(
    requirement: Requirement | None = None,
    *,
    environment: Environment,
    alias: str | None = None,
    registry: str | None = None,
    base: str | None = None,
    allow_base_mismatch: bool = False,
    cwd: Path | None = None,
) -> InstallPlan:
    """Decide what to install: one package, or without a requirement all that adapters.yaml and its lock say.

    A version that is locked stays as long as it satisfies the requirement, and costs no look at the registry when the
    store has it. registry: a folder, relative to `cwd`. base: the base model to check against, in place of the
    project's.

    Raises:
        UnsatisfiedError: no such package or version. UsageError: the alias is taken, or no registry is known.
        IncompatibleError: made for another base. IntegrityError: the registry's copy is not what was locked.
    """
    where = cwd if cwd is not None else Path.cwd()
    check = _fits.base_check(environment, base=base, allow=allow_base_mismatch)
    planner = _Planner(environment=environment, registry=registry, cwd=where, check=check)
    if requirement is not None:
        chosen = _alias_for(requirement, alias, environment)
        packages = [planner.plan(chosen, _as_asked(requirement, chosen, environment))]
        removed: tuple[LockedPackage, ...] = ()
    else:
        if alias is not None:
            raise UsageError("an alias needs the package it is for", where="--as", hint="adapt install NAME --as ALIAS")
        packages = [planner.plan(name, wanted) for name, wanted in sorted(environment.project.adapters.items())]
        wanted_aliases = {item.alias for item in packages}
        removed = tuple(entry for entry in environment.lock.entries if entry.alias not in wanted_aliases)
    plan = InstallPlan(
        verb="install",
        environment=environment,
        packages=tuple(packages),
        removed=removed,
        base=check.locked(environment.lock),
        warnings=tuple(check.warnings),
    )
    return replace(plan, steps=_steps(plan))


def _alias_for(requirement: Requirement, given: str | None, environment: Environment) -> str:
    """Return the alias a package goes by: the given one, the one it has, or the default.

    Raises:
        UsageError: the alias is malformed, or means something else here.
    """
    name, project, lock = requirement.name, environment.project, environment.lock
    known = {alias: wanted.name for alias, wanted in project.adapters.items()}
    known |= {entry.alias: entry.name for entry in lock.entries if entry.alias}
    present = next((alias for alias, other in known.items() if other.key == name.key), None)
    if present is not None and str(known[present]) != str(name):
        raise UsageError(f"{name} differs from the installed {known[present]} in case alone", hint="use one spelling")
    if present is not None and given not in (None, present):
        raise UsageError(
            f"{name} is installed as {present!r} already", where="--as", hint=f"first: adapt uninstall {present}"
        )
    alias = present or given or name.default_alias
    try:
        check_alias(alias)
    except ValueError as error:
        raise UsageError(str(error), where="--as", hint=f"--as {name.default_alias}") from error
    taken = known.get(alias)
    if taken is not None and taken.key != name.key:
        raise UsageError(f"the alias {alias!r} is taken by {taken}", hint="choose another with --as ALIAS")
    if alias in project.stacks:
        raise UsageError(f"{alias!r} is a stack in {PROJECT_FILE}", hint="choose another alias with --as ALIAS")
    return alias


def _as_asked(requirement: Requirement, alias: str, environment: Environment) -> Requirement:
    """Return what adapters.yaml will say: a bare name leaves the range that is there."""
    present = environment.project.adapters.get(alias)
    bare = not requirement.specifier and requirement.revision is None
    return present if present is not None and bare else requirement


@dataclass(frozen=True, slots=True, kw_only=True)
class _Planner:
    environment: Environment
    registry: str | None
    cwd: Path
    check: _fits.BaseCheck

    def plan(self, alias: str, requirement: Requirement) -> PlannedPackage:
        """Plan one package: from the lock and the store alone where they have it, else from its registry."""
        folder = self.environment.adapter_path(alias)
        require_ours(folder, alias)
        store = Store(self.environment.settings.store)
        locked = self._locked(requirement)
        found = None if locked is None else store.find(locked.ref, _stored(locked).identity)
        if locked is not None and found is not None and self.check.settled(self.environment.lock):
            entry = replace(locked, alias=alias, required_by=(PROJECT_FILE,))
            return self._planned(alias, requirement, entry, found, ("locked",))
        registry = self.environment.registry_of(requirement.name, given=self.registry, cwd=self.cwd)
        reasons: tuple[str, ...] = ("locked",)
        if locked is not None:
            ref = locked.ref
        else:
            resolution = choose(requirement, registry.versions(requirement.name), where=registry.location)
            ref, reasons = resolution.ref, resolution.reasons
        description = registry.describe(ref)
        require_adapter(description)
        known = self.environment.lock.by_name(ref.name)
        again = known is not None and known.ref == ref
        if known is not None and again:
            _require_as_locked(description, known, registry)
        stored = description.stored
        entry = LockedPackage(
            alias=alias,
            name=ref.name,
            version=ref.version,
            registry=registry.location,
            revision=description.revision,
            manifest=stored.manifest,
            files=stored.files,
            required_by=(PROJECT_FILE,),
            base_mismatch=self.check.mismatch(
                description, allowed_before=again and known is not None and known.base_mismatch
            ),
        )
        planned = self._planned(alias, requirement, entry, stored, reasons)
        missing = store.missing(stored.files)
        if missing or store.find(ref, stored.identity) is None:
            return replace(planned, fetch=missing, source=(registry, description))
        return planned

    def _planned(
        self,
        alias: str,
        requirement: Requirement,
        entry: LockedPackage,
        stored: StoredPackage,
        reasons: tuple[str, ...],
    ) -> PlannedPackage:
        state = state_of(self.environment.adapter_path(alias), stored)
        return PlannedPackage(
            alias=alias, requirement=requirement, entry=entry, stored=stored, state=state, reasons=reasons
        )

    def _locked(self, requirement: Requirement) -> LockedPackage | None:
        """Return the lock's entry while it satisfies the requirement and its registry is still the one."""
        locked = self.environment.lock.by_name(requirement.name)
        if locked is None or not requirement.allows(locked.version, prereleases=True):
            return None
        location: str | None = locked.registry
        if self.registry is not None:
            location = self.environment.registry_of(requirement.name, given=self.registry, cwd=self.cwd).location
        elif (claimed := self.environment.project.registry_of(requirement.name)) is not None:
            location = claimed
        return locked if location == locked.registry else None


def _stored(entry: LockedPackage) -> StoredPackage:
    return StoredPackage(ref=entry.ref, manifest=entry.manifest, files=entry.files)


def _require_as_locked(description: Description, locked: LockedPackage, registry: Registry) -> None:
    """Refuse a registry whose package is not the one that was locked.

    Raises:
        IntegrityError: it was republished or exchanged.
    """
    if description.stored != _stored(locked):
        raise IntegrityError(
            f"{locked.ref} is not what {LOCK_FILE} recorded: it was published anew with other bytes",
            where=registry.location,
            hint=f"if you trust the new one: adapt uninstall {locked.alias}, then adapt install {locked.ref}",
        )


def _steps(plan: InstallPlan) -> tuple[Step, ...]:
    """Return the steps in the order in which they are done: store, folders, adapters.yaml, the lock last."""
    environment = plan.environment
    steps = []
    for item in plan.packages:
        why = "; ".join(item.reasons)
        if item.source is not None:
            size = sum(entry.size for entry in item.fetch)
            origin = f"from {item.entry.registry}; {why}"
            steps.append(Step(action="fetch", subject=str(item.entry.ref), detail=origin, size=size))
        else:
            steps.append(Step(action="reuse", subject=str(item.entry.ref), detail=f"from the store; {why}"))
    for item in plan.packages:
        if item.state is not State.SAME:
            detail = "your changes are kept aside" if item.state is State.CHANGED else ""
            subject = str(environment.adapter_path(item.alias))
            steps.append(Step(action="link", subject=subject, detail=detail))
    steps += [Step(action="remove", subject=str(entry.ref), detail="no longer asked for") for entry in plan.removed]
    change = _change(plan)
    if change.of_project(environment.project) != environment.project:
        steps.append(Step(action="write", subject=str(environment.folder / PROJECT_FILE)))
    if change.of_lock(environment.lock) != environment.lock:
        steps.append(Step(action="write", subject=str(environment.folder / LOCK_FILE)))
    return tuple(steps)


def _change(plan: InstallPlan) -> _edit.Change:
    return _edit.Change(
        adapters={item.alias: item.requirement for item in plan.packages},
        entries=tuple(item.entry for item in plan.packages),
        dropped=tuple(entry.name for entry in plan.removed),
        base=plan.base,
        set_base=True,
    )


def install(plan: InstallPlan, *, progress: Progress = SILENT) -> Installed:
    """Do what the plan says: all packages into the store, then their folders, then adapters.yaml, the lock last.

    Raises:
        IntegrityError: a registry's bytes are not what its manifest says; nothing was installed. LocalIOError.
    """
    environment = plan.environment
    store = Store(environment.settings.store)
    for item in plan.packages:
        if item.source is not None:
            registry, description = item.source
            registry.fetch(description, store, progress=progress)
    for item in plan.packages:
        if item.state is not State.SAME:
            place(store, item.stored, environment.adapter_path(item.alias), progress=progress)
    for entry in plan.removed:
        if entry.alias is not None and state_of(environment.adapter_path(entry.alias), None) is not State.FOREIGN:
            take_away(environment.adapter_path(entry.alias), progress=progress)
    _edit.edit(environment, _change(plan))
    return Installed(plan=plan)
