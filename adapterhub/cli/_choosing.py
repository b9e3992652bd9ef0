"""What install, sync, update and lock share: their options as values, and how they tell what they did."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from adapterhub.cli import console

if TYPE_CHECKING:
    from adapterhub.environment import Environment
    from adapterhub.ops._install_plan import InstallPlan
    from adapterhub.ops._installation import Installed

# So many packages are told one by one; of more, only those that changed.
_FEW = 5


def here(*, offline: bool) -> Environment:
    """Return the environment that is meant here, closed to the network where that is wanted."""
    from adapterhub.environment import find_environment

    found = find_environment()
    if not offline:
        return found
    from adapterhub.ops.sync import offline as without_network

    return without_network(found)


def parse_min_age(text: str | None) -> timedelta | None:
    """Read what was written after --min-age; None for what the settings say."""
    from adapterhub.settings import parse_age

    return None if text is None else parse_age(text, where="--min-age")


def tell_before(plan: InstallPlan) -> None:
    """Print what a person should know before anything is done."""
    for note in plan.notes:
        console.say(note)
    for warning in plan.warnings:
        console.warn(warning)


def tell_after(done: Installed) -> None:
    """Print what was done, a line for each package, and for each that went."""
    plan = done.plan
    changed = [item for item in plan.packages if item.changes or item.moved]
    few = plan.packages if len(plan.packages) <= _FEW else changed
    for item in few:
        if item.alias is None:
            name, place = str(item.entry.ref), f" for {', '.join(_askers(plan, item.entry.name.key))}"
        else:
            name, place = f"{item.entry.ref} as {item.alias}", f" in {item.path}"
        verb = "installed" if item.changes else "up to date:"
        console.say(f"{verb} {name}{f' ({item.moved})' if item.moved else ''}{place}")
    if len(few) < len(plan.packages):
        console.say(f"{len(plan.packages) - len(few)} more up to date")
    for entry in plan.removed:
        console.say(f"removed {entry.ref}, which nothing asks for any more")
    for folder in plan.extras:
        console.say(f"removed {folder}, which belonged to nothing that is locked")


def _askers(plan: InstallPlan, key: str) -> list[str]:
    locked = plan.change.of_lock(plan.environment.lock)
    return [str(entry.name) for entry in locked.entries if key in {item.name.key for item in entry.requires}]
