"""What a plan would change in adapters.lock, in words."""

from __future__ import annotations

from adapterhub.ops._install_plan import InstallPlan
from adapterhub.spec.lockfile import LockedPackage


def lock_changes(plan: InstallPlan) -> tuple[str, ...]:
    """Return one line for each difference between the lock that is there and the one the plan would write."""
    before, after = plan.environment.lock, plan.change.of_lock(plan.environment.lock)
    if before == after:
        return ()
    old = {entry.name.key: entry for entry in before.entries}
    new = {entry.name.key: entry for entry in after.entries}
    lines = [_told(old.get(key), new.get(key)) for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if before.base != after.base:
        told = [base.base.id if base is not None else "none" for base in (before.base, after.base)]
        lines.append("the base model changes" if told[0] == told[1] else f"the base model: {told[0]} → {told[1]}")
    return tuple(lines)


def _told(old: LockedPackage | None, new: LockedPackage | None) -> str:
    if old is None:
        assert new is not None
        return f"{new.ref} is not locked"
    if new is None:
        return f"{old.ref} is locked and nothing asks for it"
    if old.version != new.version:
        return f"{old.ref} → {new.version}"
    return f"{old.ref} is recorded differently"
