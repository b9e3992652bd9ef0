"""What install, sync, update and lock are about to do, as values: one package, and all of them in order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from adapterhub.environment import Environment
from adapterhub.ops import _edit
from adapterhub.ops._place import State
from adapterhub.registry import Description, Registry
from adapterhub.spec.digest import FileEntry
from adapterhub.spec.lockfile import LOCK_FILE, LockedBase, LockedPackage
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.project import PROJECT_FILE
from adapterhub.spec.refs import Requirement
from adapterhub.store import StoredPackage


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPackage:
    """One package to be installed.

    alias: None for what only a stack package asks for. entry: what the lock will say. fetch: the payload files that the
    store lacks, and source: where they come from (None when the store has all). path: where it will lie, state: what
    lies there now. before: the version that is locked now, if any. vacated: where it lies now, when it moves.
    """

    alias: str | None
    entry: LockedPackage
    stored: StoredPackage
    path: Path
    fetch: tuple[FileEntry, ...] = ()
    source: tuple[Registry, Description] | None = None
    state: State = State.ABSENT
    before: LockedPackage | None = None
    vacated: Path | None = None
    reasons: tuple[str, ...] = ()

    @property
    def changes(self) -> bool:
        """True when something of it is not in place yet."""
        return self.source is not None or self.state is not State.SAME

    @property
    def moved(self) -> str:
        """What the lock said before, as `was 1.0.0`; empty where it said nothing, or the same."""
        if self.before is None or self.before.version == self.entry.version:
            return ""
        return f"was {self.before.version}"

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "alias": self.alias,
            "name": str(self.entry.name),
            "version": str(self.entry.version),
            "before": None if self.before is None else str(self.before.version),
            "registry": self.entry.registry,
            "path": str(self.path),
            "fetched_bytes": sum(entry.size for entry in self.fetch),
            "base_mismatch": self.entry.base_mismatch,
            "reasons": list(self.reasons),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallPlan(Plan):
    """What will be fetched, laid out and written.

    adapters: what adapters.yaml will ask for anew. removed: lock entries that nothing asks for any more.
    extras: folders of ours below .adapters/ that belong to no entry. lay_out: False when only the lock is written.
    """

    environment: Environment
    packages: tuple[PlannedPackage, ...] = ()
    adapters: Mapping[str, Requirement] = field(default_factory=dict)
    removed: tuple[LockedPackage, ...] = ()
    extras: tuple[Path, ...] = ()
    base: LockedBase | None = None
    notes: tuple[str, ...] = ()
    lay_out: bool = True

    @property
    def change(self) -> _edit.Change:
        """What the plan changes in adapters.yaml and adapters.lock."""
        return _edit.Change(
            adapters=self.adapters,
            entries=tuple(item.entry for item in self.packages),
            dropped=tuple(entry.name for entry in self.removed),
            base=self.base,
            set_base=True,
        )

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return where the adapters go."""
        owner = "your own environment" if self.environment.is_user else "project"
        return (("environment", f"{self.environment.folder} ({owner})"),)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        # Plan.to_data by name: `super()` without arguments does not work in a dataclass with slots.
        return {
            **Plan.to_data(self),
            "packages": [item.to_data() for item in self.packages],
            "removed": [entry.alias or str(entry.name) for entry in self.removed],
            "notes": list(self.notes),
        }


def steps_of(plan: InstallPlan) -> tuple[Step, ...]:
    """Return the steps in the order in which they are done: store, folders, adapters.yaml, the lock last."""
    environment = plan.environment
    steps = [_step_of(item, lay_out=plan.lay_out) for item in plan.packages]
    for item in plan.packages:
        if item.state is not State.SAME:
            detail = "your changes are kept aside" if item.state is State.CHANGED else ""
            steps.append(Step(action="link", subject=str(item.path), detail=detail))
    steps += [Step(action="remove", subject=str(entry.ref), detail="no longer asked for") for entry in plan.removed]
    steps += [Step(action="remove", subject=str(path), detail="belongs to nothing locked") for path in plan.extras]
    project = plan.change.of_project(environment.project)
    if project != environment.project:
        steps.append(Step(action="write", subject=str(environment.folder / PROJECT_FILE)))
    if plan.change.of_lock(environment.lock) != environment.lock:
        steps.append(Step(action="write", subject=str(environment.folder / LOCK_FILE)))
    return tuple(steps)


def _step_of(item: PlannedPackage, *, lay_out: bool) -> Step:
    why = "; ".join(part for part in (*item.reasons, item.moved) if part)
    if not lay_out:
        same = item.before is not None and item.before.ref == item.entry.ref
        return Step(action="keep" if same else "lock", subject=str(item.entry.ref), detail=why)
    if item.source is not None:
        size = sum(entry.size for entry in item.fetch)
        detail = f"from {item.entry.registry}; {why}"
        return Step(action="fetch", subject=str(item.entry.ref), detail=detail, size=size)
    return Step(action="reuse", subject=str(item.entry.ref), detail=f"from the store; {why}")
