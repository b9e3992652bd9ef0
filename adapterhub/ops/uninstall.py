"""`adapt uninstall`: take an adapter out of adapters.yaml, the lock and .adapters/; the store keeps its bytes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from adapterhub.environment import Environment
from adapterhub.errors import UnsatisfiedError, UsageError
from adapterhub.ops import _edit
from adapterhub.ops._place import State, place, state_of, take_away
from adapterhub.progress import SILENT, Progress
from adapterhub.spec._decode import suggest
from adapterhub.spec.lockfile import LOCK_FILE, LockedPackage
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.project import PROJECT_FILE
from adapterhub.spec.refs import PackageName
from adapterhub.store import Store
from adapterhub.store.roots import stored_of


@dataclass(frozen=True, slots=True, kw_only=True)
class UninstallPlan(Plan):
    """What will be taken out: the alias, and the lock's entry where it is installed.

    kept: the entry without its alias, where a stack package still needs it. orphans: what only it had asked for.
    """

    environment: Environment
    alias: str
    entry: LockedPackage | None
    kept: LockedPackage | None = None
    orphans: tuple[LockedPackage, ...] = ()

    @property
    def name(self) -> PackageName | None:
        """The package's full name, where adapters.yaml or the lock knows it."""
        if self.entry is not None:
            return self.entry.name
        wanted = self.environment.project.adapters.get(self.alias)
        return None if wanted is None else wanted.name

    @property
    def folder(self) -> Path:
        """Where the adapter lies."""
        return self.environment.adapter_path(self.alias)

    @property
    def change(self) -> _edit.Change:
        """What the plan changes in adapters.yaml and adapters.lock."""
        dropped = () if self.entry is None else (self.entry.name,)
        kept = () if self.kept is None else (self.kept,)
        return _edit.Change(adapters=MappingProxyType({self.alias: None}), entries=kept, dropped=dropped)


def plan_uninstall(word: str, *, environment: Environment) -> UninstallPlan:
    """Decide what to take out for an alias or an `org/name` of this environment.

    Raises:
        UnsatisfiedError: it is not installed here. UsageError: a stack of adapters.yaml needs it.
    """
    project, lock = environment.project, environment.lock
    by_alias = {entry.alias: entry for entry in lock.entries if entry.alias}
    names = {str(wanted.name): alias for alias, wanted in project.adapters.items()}
    names |= {str(entry.name): alias for alias, entry in by_alias.items()}
    alias = word if word in by_alias or word in project.adapters else names.get(word)
    if alias is None:
        known = sorted({*by_alias, *project.adapters})
        near = suggest(word, [*known, *names])
        hint = f"did you mean {near}?" if near else f"installed here: {', '.join(known) or 'nothing'}"
        raise UnsatisfiedError(f"{word} is not installed", where=str(environment.folder), hint=hint)
    users = sorted(name for name, stack in project.stacks.items() if any(item.word == alias for item in stack.layers))
    if users:
        raise UsageError(
            f"{alias!r} is part of the stack {', '.join(users)}",
            where=str(environment.folder / PROJECT_FILE),
            hint="take it out of the stack first",
        )
    entry = by_alias.get(alias)
    needed = entry is not None and any(
        requirement.name.key == entry.name.key for other in lock.entries for requirement in other.requires
    )
    plan = UninstallPlan(
        verb="uninstall",
        environment=environment,
        alias=alias,
        entry=entry,
        kept=replace(entry, alias=None) if entry is not None and needed else None,
    )
    after = {item.name.key for item in plan.change.of_lock(lock).entries}
    orphans = tuple(item for item in lock.entries if item.name.key not in after and item != entry)
    plan = replace(plan, orphans=orphans)
    return replace(plan, steps=tuple(_steps(plan)))


def _steps(plan: UninstallPlan) -> list[Step]:
    environment, steps = plan.environment, []
    if plan.alias in environment.project.adapters:
        steps.append(Step(action="write", subject=str(environment.folder / PROJECT_FILE)))
    if plan.entry is not None:
        steps.append(Step(action="write", subject=str(environment.folder / LOCK_FILE)))
    if plan.kept is not None:
        detail = f"{', '.join(_askers(plan))} still needs it"
        steps.append(Step(action="keep", subject=str(plan.kept.ref), detail=detail))
    state = state_of(plan.folder, None)
    if state not in (State.ABSENT, State.FOREIGN):
        detail = "your changes are kept aside" if state is State.CHANGED else ""
        steps.append(Step(action="remove", subject=str(plan.folder), detail=detail))
    steps += [
        Step(action="remove", subject=str(environment.path_of(item)), detail="nothing else asks for it")
        for item in plan.orphans
    ]
    return steps


def _askers(plan: UninstallPlan) -> list[str]:
    assert plan.entry is not None
    key = plan.entry.name.key
    return [str(item.name) for item in plan.environment.lock.entries if key in {req.name.key for req in item.requires}]


def uninstall(plan: UninstallPlan, *, progress: Progress = SILENT) -> None:
    """Do what the plan says: adapters.yaml, the lock, then the folders; a folder that is not ours stays.

    Raises:
        LocalIOError: the disk said no.
    """
    environment = plan.environment
    _edit.edit(environment, plan.change)
    if plan.kept is not None:
        store, stored = Store(environment.settings.store), stored_of(plan.kept)
        if store.find(stored.ref, stored.identity) is not None:
            place(store, stored, environment.path_of(plan.kept), progress=progress)
        else:
            progress.note(f"{plan.kept.ref} is still needed and not in the store: adapt sync")
    for folder in (plan.folder, *(environment.path_of(item) for item in plan.orphans)):
        if state_of(folder, None) not in (State.ABSENT, State.FOREIGN):
            take_away(folder, progress=progress)
