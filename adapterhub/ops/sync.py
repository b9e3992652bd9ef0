"""`adapt sync`: what is installed becomes exactly what is locked, and the lock what adapters.yaml asks for."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from adapterhub.environment import Environment
from adapterhub.errors import UnsatisfiedError
from adapterhub.ops._install_plan import InstallPlan
from adapterhub.ops._installation import Installed, carry_out
from adapterhub.ops._lock_changes import lock_changes
from adapterhub.ops._planning import Choosing, plan_environment, plan_locked
from adapterhub.progress import SILENT, Progress
from adapterhub.spec.lockfile import LOCK_FILE
from adapterhub.spec.project import PROJECT_FILE


def plan_sync(
    *,
    environment: Environment,
    locked: bool = False,
    frozen: bool = False,
    base: str | None = None,
    allow_base_mismatch: bool = False,
    prereleases: bool = False,
    min_age: timedelta | None = None,
    cwd: Path | None = None,
) -> InstallPlan:
    """Decide what has to be fetched, laid out and removed.

    locked: refuse where the lock would have to change. frozen: take the lock as it is, whatever adapters.yaml says.

    Raises:
        UnsatisfiedError: the lock is out of date (locked), or there is none (frozen). What `plan_install` raises.
    """
    choosing = Choosing(
        base=base,
        allow_base_mismatch=allow_base_mismatch,
        prereleases=prereleases,
        min_age=min_age,
        cwd=cwd if cwd is not None else Path.cwd(),
    )
    if frozen:
        if not (environment.folder / LOCK_FILE).is_file():
            raise UnsatisfiedError(
                f"there is no {LOCK_FILE} to take as it is", where=str(environment.folder), hint="adapt lock"
            )
        return plan_locked("sync", environment, choosing)
    plan = plan_environment("sync", environment, environment.project.adapters, choosing)
    if locked and (changes := lock_changes(plan)):
        raise UnsatisfiedError(
            f"{LOCK_FILE} is not what {PROJECT_FILE} asks for",
            where=str(environment.folder / LOCK_FILE),
            details=changes,
            hint="adapt lock, and commit the result",
        )
    return plan


def sync(plan: InstallPlan, *, progress: Progress = SILENT) -> Installed:
    """Do what the plan says; a run that is cut off is finished by the next.

    Raises:
        IntegrityError: a registry's bytes are not what the lock says. NetworkError. LocalIOError.
    """
    return carry_out(plan, progress=progress)


def offline(environment: Environment) -> Environment:
    """Return the same environment, with registries that open no connection."""
    return replace(environment, settings=replace(environment.settings, offline=True))
