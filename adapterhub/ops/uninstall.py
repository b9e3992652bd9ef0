"""`adapt uninstall`: take an adapter out of adapters.yaml, the lock and .adapters/; the store keeps its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from adapterhub.environment import Environment
from adapterhub.errors import UnsatisfiedError, UsageError
from adapterhub.ops import _edit
from adapterhub.ops._place import State, state_of, take_away
from adapterhub.progress import SILENT, Progress
from adapterhub.spec._decode import suggest
from adapterhub.spec.lockfile import LOCK_FILE, LockedPackage
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.project import PROJECT_FILE
from adapterhub.spec.refs import PackageName


@dataclass(frozen=True, slots=True, kw_only=True)
class UninstallPlan(Plan):
    """What will be taken out: the alias, and the lock's entry where it is installed."""

    environment: Environment
    alias: str
    entry: LockedPackage | None

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
    plan = UninstallPlan(verb="uninstall", environment=environment, alias=alias, entry=by_alias.get(alias))
    steps = []
    if alias in project.adapters:
        steps.append(Step(action="write", subject=str(environment.folder / PROJECT_FILE)))
    if plan.entry is not None:
        steps.append(Step(action="write", subject=str(environment.folder / LOCK_FILE)))
    state = state_of(plan.folder, None)
    if state not in (State.ABSENT, State.FOREIGN):
        detail = "your changes are kept aside" if state is State.CHANGED else ""
        steps.append(Step(action="remove", subject=str(plan.folder), detail=detail))
    return UninstallPlan(verb="uninstall", environment=environment, alias=alias, entry=plan.entry, steps=tuple(steps))


def uninstall(plan: UninstallPlan, *, progress: Progress = SILENT) -> None:
    """Do what the plan says: adapters.yaml, the lock, then the folder; a folder that is not ours stays.

    Raises:
        LocalIOError: the disk said no.
    """
    dropped = () if plan.entry is None else (plan.entry.name,)
    change = _edit.Change(adapters=MappingProxyType({plan.alias: None}), dropped=dropped)
    _edit.edit(plan.environment, change)
    if state_of(plan.folder, None) not in (State.ABSENT, State.FOREIGN):
        take_away(plan.folder, progress=progress)
