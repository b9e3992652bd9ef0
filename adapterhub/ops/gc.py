"""`adapt gc`: take out of the store what no project, no user and no process at work needs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from adapterhub.environment import ADAPTERS_FOLDER
from adapterhub.files import local_io
from adapterhub.ops._place import clear_leftover, leftovers
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings
from adapterhub.spec.lockfile import LOCK_FILE
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.project import PROJECT_FILE
from adapterhub.store import Store
from adapterhub.store.collect import DEFAULT_GRACE, Sweep, collect, plan_collect
from adapterhub.store.inventory import is_left_behind
from adapterhub.store.roots import RootState, roots


@dataclass(frozen=True, slots=True, kw_only=True)
class GcPlan(Plan):
    """What would go: `sweep` from the store, `leftovers` of killed commands from the folders that use it."""

    settings: Settings
    sweep: Sweep
    leftovers: tuple[Path, ...] = ()

    @property
    def frees(self) -> int:
        """How many bytes of the store come free; what an installed folder shares stays on the disk with it."""
        return self.sweep.frees

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return where the store lies, and what stays in it."""
        kept = f"{self.sweep.kept} packages"
        if self.sweep.young:
            kept += f", {self.sweep.young} of them only for being younger than {_age(self.sweep.grace)}"
        return (("store", str(self.settings.store)), ("kept", kept))

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        # Plan.to_data by name: `super()` without arguments does not work in a dataclass with slots.
        return {
            **Plan.to_data(self),
            "packages": [str(package.ref) for package in self.sweep.packages],
            "bytes": self.frees,
            "kept": self.sweep.kept,
            "young": self.sweep.young,
            "young_bytes": self.sweep.young_bytes,
            "away": [str(root.folder) for root in self.sweep.away],
            "forgotten": [str(root.folder) for root in self.sweep.forgotten],
            "leftovers": [str(path) for path in self.leftovers],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a collection took out; `plan` holds what was really done."""

    plan: GcPlan

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "removed": [str(package.ref) for package in self.plan.sweep.packages],
            "bytes": self.plan.frees,
            "kept": self.plan.sweep.kept,
            "young": self.plan.sweep.young,
            "young_bytes": self.plan.sweep.young_bytes,
            "forgotten": [str(root.folder) for root in self.plan.sweep.forgotten],
            "leftovers": [str(path) for path in self.plan.leftovers],
        }


def plan_gc(*, settings: Settings, grace: timedelta = DEFAULT_GRACE) -> GcPlan:
    """Find what nothing needs. grace: what was touched less long ago stays.

    Raises:
        InvalidFileError: a lockfile that the store serves cannot be read: nothing may be collected. LocalIOError.
    """
    sweep = plan_collect(Store(settings.store), also=(settings.user_environment,), grace=grace)
    warnings = [
        f"{root.folder} cannot be reached: what its lockfile named when it was last seen stays" for root in sweep.away
    ]
    plan = GcPlan(
        verb="gc",
        settings=settings,
        sweep=sweep,
        leftovers=tuple(_leftovers(settings, sweep)),
        warnings=tuple(warnings),
    )
    return replace(plan, steps=tuple(_steps(plan)))


def gc(plan: GcPlan, *, progress: Progress = SILENT) -> Collected:
    """Do what the plan says, as far as it still holds.

    Raises:
        InvalidFileError: a lockfile became unreadable meanwhile; what was moved is back in its place. LocalIOError.
    """
    sweep = collect(Store(plan.settings.store), plan.sweep, also=(plan.settings.user_environment,))
    for path in plan.leftovers:
        if path.is_dir() and not path.is_symlink():
            clear_leftover(path, progress=progress)
        else:
            with local_io(path, "remove the file"):
                path.unlink(missing_ok=True)
    done = replace(plan, sweep=sweep)
    return Collected(plan=replace(done, steps=tuple(_steps(done))))


def _steps(plan: GcPlan) -> Iterator[Step]:
    sweep, store = plan.sweep, Store(plan.settings.store)
    sizes = {item.path: item.frees for item in sweep.unused}
    for package in sweep.packages:
        paths = {store.ref_path(package.ref, package.identity), *(store.blob_path(f.digest) for f in package.files)}
        if package.manifest is not None:
            paths.add(store.manifest_path(package.manifest))
        size = sum(sizes.pop(path, 0) for path in paths)  # what two packages share is told of the first
        yield Step(action="remove", subject=str(package.ref), detail="no lockfile names it", size=size)
    others = [item for item in sweep.unused if item.path in sizes]
    if others:
        subject = f"{len(others)} files of the store"
        yield Step(action="remove", subject=subject, detail="of no package", size=sum(item.frees for item in others))
    if sweep.left:
        subject, size = f"{len(sweep.left)} files of the store", sum(item.frees for item in sweep.left)
        yield Step(action="remove", subject=subject, detail="left by commands that were interrupted", size=size)
    for path in plan.leftovers:
        yield Step(action="remove", subject=str(path), detail="left by a command that was interrupted")
    for root in sweep.forgotten:
        yield Step(action="forget", subject=str(root.folder), detail="it was deleted")


def _leftovers(settings: Settings, sweep: Sweep) -> Iterator[Path]:
    """Walk over the hidden files and folders that killed commands left in the folders that use the store."""
    present = [root.folder for root in roots(Store(settings.store)) if root.state is RootState.PRESENT]
    for folder in dict.fromkeys((*present, settings.user_environment)):
        found = [*leftovers(folder / ADAPTERS_FOLDER)]
        for name in (PROJECT_FILE, LOCK_FILE):
            found += sorted(path for path in folder.glob(f".{name}.*-*.tmp") if path.is_file())
        for path in found:
            try:
                age = time.time() - path.stat().st_ctime
            except OSError:
                continue
            if age >= sweep.grace and is_left_behind(path.name, age=age):
                yield path


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds / 60:.0f}m"
