"""Doing what an installation plan says, so that a crash at any moment leaves what was, or what is to be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapterhub.ops import _edit
from adapterhub.ops._install_plan import InstallPlan, PlannedPackage
from adapterhub.ops._place import State, place, state_of, take_away
from adapterhub.progress import SILENT, Progress
from adapterhub.registry import Description, Registry
from adapterhub.store import Store
from adapterhub.store.leases import lease
from adapterhub.store.roots import add_root


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What an installation left: the plan's packages, all of them in place."""

    plan: InstallPlan

    @property
    def paths(self) -> dict[str, Path]:
        """The folder of each alias."""
        return {item.alias: item.path for item in self.plan.packages if item.alias is not None}

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "environment": str(self.plan.environment.folder),
            "installed": [item.to_data() for item in self.plan.packages],
            "removed": [entry.alias or str(entry.name) for entry in self.plan.removed],
            "warnings": list(self.plan.warnings),
            "notes": list(self.plan.notes),
        }


def carry_out(plan: InstallPlan, *, progress: Progress = SILENT) -> Installed:
    """Do what the plan says: all packages into the store, then their folders, then adapters.yaml, the lock last.

    Raises:
        IntegrityError: a registry's bytes are not what its manifest says; nothing was installed. LocalIOError.
    """
    environment = plan.environment
    if not plan.lay_out:
        _edit.edit(environment, plan.change)
        return Installed(plan=plan)
    store = Store(environment.settings.store)
    if not plan.changes:
        if plan.packages:
            add_root(store, environment.folder)
        return Installed(plan=plan)
    # The lease is written before a blob is looked for: what this installation needs, no sweep takes from now on.
    with lease(store, [item.stored for item in plan.packages]):
        _fetch(plan, store, progress)
        for item in plan.packages:
            if item.state is not State.SAME:
                place(store, item.stored, item.path, progress=progress)
        for folder in _to_clear(plan):
            if state_of(folder, None) not in (State.FOREIGN, State.ABSENT):
                take_away(folder, progress=progress)
        if plan.packages or plan.environment.lock.entries:
            add_root(store, environment.folder)
        _edit.edit(environment, plan.change)
        if plan.packages or plan.environment.lock.entries:
            add_root(store, environment.folder)  # once more: it remembers the lock as it is now
    return Installed(plan=plan)


def _fetch(plan: InstallPlan, store: Store, progress: Progress) -> None:
    """Bring what is missing into the store, all packages of one registry together."""
    waiting: dict[str, tuple[Registry, list[Description]]] = {}
    for item in plan.packages:
        if (source := _source_of(item, plan, store)) is not None:
            registry, description = source
            waiting.setdefault(registry.location, (registry, []))[1].append(description)
    for registry, descriptions in waiting.values():
        registry.fetch_all(descriptions, store, progress=progress)


def _source_of(item: PlannedPackage, plan: InstallPlan, store: Store) -> tuple[Registry, Description] | None:
    """Return where a package has to be fetched from; also one that was swept from the store since it was planned."""
    if item.source is not None:
        return item.source
    if store.holds(item.stored):
        return None
    registry = plan.environment.registry_of(item.entry.name, given=None, cwd=plan.environment.folder)
    return registry, registry.describe(item.entry.ref, revision=item.entry.revision)


def _to_clear(plan: InstallPlan) -> list[Path]:
    """Return the folders that hold what is no longer wanted there."""
    kept = {item.path for item in plan.packages}
    folders = [item.vacated for item in plan.packages if item.vacated is not None]
    folders += [plan.environment.path_of(entry) for entry in plan.removed]
    return [folder for folder in (*folders, *plan.extras) if folder not in kept]
