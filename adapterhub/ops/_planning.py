"""From what an environment wants to a plan: versions chosen, fit decided, nothing fetched.

Shared by install, sync, update and lock; `_installation` does what is planned here.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path

from adapterhub.environment import ADAPTERS_FOLDER, Environment
from adapterhub.errors import IncompatibleError, IntegrityError
from adapterhub.ops import _fits
from adapterhub.ops._install_plan import InstallPlan, PlannedPackage, steps_of
from adapterhub.ops._place import State, ours_below, require_ours, state_of
from adapterhub.registry import Description, Registry
from adapterhub.resolve import Choice, Locked, Policy, Resolution, Wanted, resolve
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.lockfile import LOCK_FILE, LockedPackage
from adapterhub.spec.project import PROJECT_FILE
from adapterhub.spec.refs import PackageName, Requirement
from adapterhub.store import Store, StoredPackage
from adapterhub.store.roots import stored_of

# Descriptions are a few small requests each; a registry on a network answers several at once.
_AT_ONCE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Choosing:
    """How versions are chosen, as the options of install, sync, update and lock say.

    registry: a location that was typed, relative to `cwd`, for the names that adapters.yaml does not claim. base: the
    base model to check against, in place of the project's. upgrade: keys of the names that may leave their locked
    versions, ALL for every one. min_age: None for what the settings say.
    """

    registry: str | None = None
    base: str | None = None
    allow_base_mismatch: bool = False
    upgrade: frozenset[str] = frozenset()
    prereleases: bool = False
    min_age: timedelta | None = None
    cwd: Path = field(default_factory=Path.cwd)


def plan_environment(
    verb: str,
    environment: Environment,
    adapters: Mapping[str, Requirement],
    choosing: Choosing,
    *,
    only: PackageName | None = None,
    lay_out: bool = True,
) -> InstallPlan:
    """Choose a version of everything that is asked for, and decide what has to be done to have it.

    adapters: all that adapters.yaml will ask for, by alias. only: leave alone what is in place and not needed by this.
    A version that is locked stays as long as it satisfies, and costs no look at a registry when the store has it.

    Raises:
        UnsatisfiedError: no such package or version, or requirements that contradict each other.
        IncompatibleError: made for another base. IntegrityError: the registry's copy is not what was locked.
    """
    check = _fits.base_check(environment, base=choosing.base, allow=choosing.allow_base_mismatch)
    planner = _Planner(environment=environment, adapters=adapters, choosing=choosing, check=check, lay_out=lay_out)
    resolution = planner.resolve()
    packages = planner.plan(_needed(resolution.choices, only))
    before = environment.project.adapters
    plan = InstallPlan(
        verb=verb,
        environment=environment,
        packages=packages,
        adapters={alias: wanted for alias, wanted in adapters.items() if before.get(alias) != wanted},
        base=check.locked(environment.lock),
        warnings=(*check.warnings, *_licence_warnings(packages, environment)),
        notes=(*resolution.notes, *(note for item in packages if item.source for note in item.source[1].notes)),
        lay_out=lay_out,
    )
    return finished(plan, whole=only is None)


def plan_locked(verb: str, environment: Environment, choosing: Choosing) -> InstallPlan:
    """Plan what the lock says, whatever adapters.yaml asks for; nothing is chosen.

    Raises:
        IncompatibleError: made for another base. IntegrityError: the registry's copy is not what was locked.
    """
    check = _fits.base_check(environment, base=choosing.base, allow=choosing.allow_base_mismatch)
    entries = environment.lock.entries
    adapters = {
        entry.alias: Requirement(entry.name, revision=entry.requested_revision)
        for entry in entries
        if entry.alias is not None
    }
    planner = _Planner(environment=environment, adapters=adapters, choosing=choosing, check=check, lay_out=True)
    choices = [
        Choice(
            ref=entry.ref,
            registry=None,
            revision=entry.revision,
            requires=entry.requires,
            required_by=entry.required_by,
            reasons=("locked",),
            locked=True,
            description=None,
        )
        for entry in entries
    ]
    plan = InstallPlan(
        verb=verb,
        environment=environment,
        packages=planner.plan(tuple(choices)),
        base=environment.lock.base,
        warnings=tuple(check.warnings),
    )
    return finished(plan, whole=True)


def finished(plan: InstallPlan, *, whole: bool) -> InstallPlan:
    """Return a plan with what follows from its packages: entries to drop, folders to clear, and the steps.

    whole: the packages are all there should be, not merely some.
    """
    environment = plan.environment
    if whole:
        there = {item.entry.name.key for item in plan.packages}
        gone = tuple(entry for entry in environment.lock.entries if entry.name.key not in there)
    else:
        after = {entry.name.key for entry in plan.change.of_lock(environment.lock).entries}
        gone = tuple(entry for entry in environment.lock.entries if entry.name.key not in after)
    plan = replace(plan, removed=gone)
    if whole and plan.lay_out:
        kept = {item.path for item in plan.packages} | {environment.path_of(entry) for entry in gone}
        kept |= {item.vacated for item in plan.packages if item.vacated is not None}
        plan = replace(plan, extras=tuple(ours_below(environment.folder / ADAPTERS_FOLDER, besides=kept)))
    return replace(plan, steps=steps_of(plan))


def _needed(choices: tuple[Choice, ...], only: PackageName | None) -> tuple[Choice, ...]:
    """Return the choices that a package needs, and those that are not as they were locked."""
    if only is None:
        return choices
    by_key = {choice.ref.name.key: choice for choice in choices}
    waiting, reached = [only.key], set[str]()
    while waiting:
        key = waiting.pop()
        if key not in reached:
            reached.add(key)
            waiting += [requirement.name.key for requirement in by_key[key].requires]
    return tuple(choice for choice in choices if choice.ref.name.key in reached or not choice.locked)


@dataclass(frozen=True, kw_only=True)
class _Planner:
    environment: Environment
    adapters: Mapping[str, Requirement]
    choosing: Choosing
    check: _fits.BaseCheck
    lay_out: bool

    def resolve(self) -> Resolution:
        """Choose versions, against the base that is known, or else that of the stack packages among them."""
        base = None if self.check.actual is None or self.check.allow else self.check.actual.base
        resolution = self._resolve(base)
        if base is None and self.check.asked is None:
            stacks = [choice for choice in resolution.choices if choice.requires and choice.description is not None]
            if stacks:
                assert stacks[0].description is not None
                resolution = self._resolve(stacks[0].description.manifest.base_model)
        return resolution

    def _resolve(self, base: BaseModelRef | None) -> Resolution:
        settings, choosing = self.environment.settings, self.choosing
        return resolve(
            [Wanted(requirement=requirement, by=PROJECT_FILE) for _, requirement in sorted(self.adapters.items())],
            registry_of=self._registry_of,
            locked=self._locked(),
            base=base,
            policy=Policy(
                upgrade=choosing.upgrade,
                prereleases=choosing.prereleases,
                min_age=settings.min_age if choosing.min_age is None else choosing.min_age,
                now=datetime.now(UTC),
            ),
        )

    def _registry_of(self, name: PackageName) -> Registry:
        """Return a name's one registry; what was typed holds for names that nothing else claims."""
        given = self.choosing.registry
        environment = self.environment
        if name.key not in self._new and (environment.project.registry_of(name) or environment.lock.by_name(name)):
            given = None
        return environment.registry_of(name, given=given, cwd=self.choosing.cwd)

    @cached_property
    def _new(self) -> frozenset[str]:
        """The keys of what is asked for and adapters.yaml does not have yet."""
        before = self.environment.project.adapters
        return frozenset(wanted.name.key for alias, wanted in self.adapters.items() if before.get(alias) != wanted)

    def _locked(self) -> dict[str, Locked]:
        """Return what the lock offers: the entries whose registry is still the one."""
        wanted = {requirement.name.key: requirement for requirement in self.adapters.values()}
        found = {}
        for entry in self.environment.lock.entries:
            key = entry.name.key
            requirement = wanted.get(key)
            if requirement is not None and str(requirement.name) != str(entry.name):
                continue
            if self._location_of(entry) == entry.registry:
                found[key] = Locked(
                    ref=entry.ref,
                    location=entry.registry,
                    revision=entry.revision,
                    requires=entry.requires,
                    base_mismatch=entry.base_mismatch,
                    asked=entry.requested_revision,
                )
        return found

    def _location_of(self, entry: LockedPackage) -> str:
        if self.choosing.registry is not None and entry.name.key in self._new:
            return self._registry_of(entry.name).location
        return self.environment.project.registry_of(entry.name) or entry.registry

    def plan(self, choices: tuple[Choice, ...]) -> tuple[PlannedPackage, ...]:
        """Plan packages: from the lock and the store alone where these have them, else by what the registry says."""
        store = Store(self.environment.settings.store)
        stored = {choice.ref.name.key: self._in_store(choice, store) for choice in choices}
        asked = [choice for choice in choices if stored[choice.ref.name.key] is None]
        described = dict(zip([choice.ref.name.key for choice in asked], self._describe(asked), strict=True))
        _one_base(choices, described)
        packages = []
        for choice in choices:
            key = choice.ref.name.key
            known, here = self._known.get(key), stored[key]
            if here is not None:
                assert known is not None
                entry = replace(known, alias=self._alias_of(choice.ref.name))
                packages.append(self._planned(choice, entry, here))
            else:
                packages.append(self._from_registry(choice, described[key], store))
        return tuple(sorted(packages, key=lambda item: (item.alias is None, item.alias or "", item.entry.name.key)))

    def _in_store(self, choice: Choice, store: Store) -> StoredPackage | None:
        """Return a locked package that the store has whole and whose fit was decided when it was locked."""
        known = self._known.get(choice.ref.name.key)
        if not choice.locked or known is None or not self.check.settled(self.environment.lock):
            return None
        if not self.lay_out:  # the lock alone is asked for: what it says already needs no look at the store
            return stored_of(known)
        stored = stored_of(known)
        return stored if store.holds(stored) else None

    def _describe(self, choices: list[Choice]) -> list[tuple[Registry, Description]]:
        def describe(choice: Choice) -> tuple[Registry, Description]:
            registry = choice.registry if choice.registry is not None else self._registry_of(choice.ref.name)
            if choice.description is not None:
                return registry, choice.description
            return registry, registry.describe(choice.ref, revision=choice.revision)

        if len(choices) < 2:
            return [describe(choice) for choice in choices]
        with ThreadPoolExecutor(min(_AT_ONCE, len(choices))) as pool:
            return list(pool.map(describe, choices))

    def _from_registry(self, choice: Choice, source: tuple[Registry, Description], store: Store) -> PlannedPackage:
        registry, description = source
        known = self._known.get(choice.ref.name.key)
        again = known is not None and known.ref == choice.ref
        alias = self._alias_of(choice.ref.name)
        requested = None if alias is None else self.adapters[alias].revision
        if known is not None and again and (choice.locked or requested is None):
            _require_as_locked(description, known, registry)
        stored = description.stored
        entry = LockedPackage(
            alias=alias,
            name=choice.ref.name,
            version=choice.ref.version,
            registry=registry.location,
            revision=description.revision,
            requested_revision=requested,
            manifest=stored.manifest,
            files=stored.files,
            requires=tuple(item.requirement for item in description.manifest.requires),
            base_mismatch=self.check.mismatch(
                description, allowed_before=again and known is not None and known.base_mismatch
            ),
        )
        planned = self._planned(choice, entry, stored)
        missing = store.missing(stored.files)
        if missing or store.find(entry.ref, stored.identity) is None:
            return replace(planned, fetch=missing, source=(registry, description))
        return planned

    def _planned(self, choice: Choice, entry: LockedPackage, stored: StoredPackage) -> PlannedPackage:
        path = self.environment.path_of(entry)
        known = self._known.get(entry.name.key)
        state = state_of(path, stored) if self.lay_out else State.SAME
        if state is State.FOREIGN:
            require_ours(path, entry.alias or entry.name.default_alias)
        old = None if known is None else self.environment.path_of(known)
        return PlannedPackage(
            alias=entry.alias,
            entry=entry,
            stored=stored,
            path=path,
            state=state,
            before=known,
            vacated=old if old != path else None,
            reasons=choice.reasons,
        )

    def _alias_of(self, name: PackageName) -> str | None:
        return self._aliases.get(name.key)

    @cached_property
    def _aliases(self) -> dict[str, str]:
        return {wanted.name.key: alias for alias, wanted in self.adapters.items()}

    @cached_property
    def _known(self) -> dict[str, LockedPackage]:
        return {entry.name.key: entry for entry in self.environment.lock.entries}


def _require_as_locked(description: Description, locked: LockedPackage, registry: Registry) -> None:
    """Refuse a registry whose package is not the one that was locked.

    Raises:
        IntegrityError: it was republished or exchanged.
    """
    if description.stored != stored_of(locked):
        word = locked.alias or str(locked.name)
        raise IntegrityError(
            f"{locked.ref} is not what {LOCK_FILE} recorded: it was published anew with other bytes",
            where=registry.location,
            hint=f"if you trust the new one: adapt uninstall {word}, then adapt install {locked.ref}",
        )


def _one_base(choices: tuple[Choice, ...], described: Mapping[str, tuple[Registry, Description]]) -> None:
    """Refuse a stack package whose members were made for another base than it says.

    Raises:
        IncompatibleError: one of them was.
    """
    from adapterhub.fingerprints import Verdict, compare

    for choice in choices:
        if not choice.requires or choice.ref.name.key not in described:
            continue
        base = described[choice.ref.name.key][1].manifest.base_model
        for requirement in choice.requires:
            if (member := described.get(requirement.name.key)) is None:
                continue
            other = member[1].manifest.base_model
            if compare(other, base) is Verdict.DIFFERENT:
                raise IncompatibleError(
                    f"its member {member[1].ref} was trained on another base model",
                    where=str(choice.ref),
                    details=(f"{choice.ref}: {base.id}", f"{member[1].ref}: {other.id}"),
                    hint="have the stack published again with members of one base model",
                )


def _licence_warnings(packages: tuple[PlannedPackage, ...], environment: Environment) -> tuple[str, ...]:
    """Return what a person should know of the licences of what is new here."""
    manifests = [
        item.source[1].manifest
        for item in packages
        if item.source is not None and (item.before is None or item.before.ref != item.entry.ref)
    ]
    if not manifests:
        return ()
    from adapterhub.ops._licences import base_licence_of, install_warnings

    warnings: list[str] = []
    for manifest in manifests:
        base = base_licence_of(manifest.base_model.id, environment.settings)
        warnings += install_warnings(manifest, base)
    return tuple(warnings)
