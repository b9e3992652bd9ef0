"""`adapt lock`: choose versions and write adapters.lock; no weight is moved and no folder laid out."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from adapterhub.environment import Environment
from adapterhub.ops._install_plan import InstallPlan
from adapterhub.ops._installation import carry_out
from adapterhub.ops._lock_changes import lock_changes
from adapterhub.ops._planning import Choosing, plan_environment
from adapterhub.resolve import ALL


def plan_lock(
    *,
    environment: Environment,
    upgrade: bool = False,
    base: str | None = None,
    allow_base_mismatch: bool = False,
    prereleases: bool = False,
    min_age: timedelta | None = None,
    cwd: Path | None = None,
) -> InstallPlan:
    """Decide what the lock should say; upgrade: choose as if nothing were locked.

    Raises:
        UnsatisfiedError: no such package or version, or requirements that contradict each other.
        IncompatibleError: made for another base. IntegrityError: the registry's copy is not what was locked.
    """
    choosing = Choosing(
        base=base,
        allow_base_mismatch=allow_base_mismatch,
        upgrade=ALL if upgrade else frozenset(),
        prereleases=prereleases,
        min_age=min_age,
        cwd=cwd if cwd is not None else Path.cwd(),
    )
    return plan_environment("lock", environment, environment.project.adapters, choosing, lay_out=False)


def lock(plan: InstallPlan) -> tuple[str, ...]:
    """Write the lock where it changes; return the changes in words.

    Raises:
        LocalIOError: the disk said no; the old lock is whole.
    """
    changes = lock_changes(plan)
    carry_out(plan)
    return changes
