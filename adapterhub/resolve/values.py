"""What a resolution is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from adapterhub.spec.refs import PackageRef, Requirement

if TYPE_CHECKING:
    from adapterhub.registry.base import Description, Registry

ALL: Final = frozenset({"*"})
# How deep stacks may be nested in stacks.
MAX_DEPTH = 16


@dataclass(frozen=True, slots=True)
class Wanted:
    """A requirement and who has it, as a person reads it (`adapters.yaml`)."""

    requirement: Requirement
    by: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """What a lock entry tells the solver.

    location: of the registry it came from. revision: the commit that was pinned. requires: what a stack asks for.
    base_mismatch: the user overrode a failed base check. asked: the branch, tag or commit of the requirement
    `org/name#REV` that it was locked for, None where a version was asked for: what was locked for one branch does not
    satisfy another, and no range.
    """

    ref: PackageRef
    location: str
    revision: str | None = None
    requires: tuple[Requirement, ...] = ()
    base_mismatch: bool = False
    asked: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The one version of a package that was chosen.

    registry: where it is to be had, None for one that was taken from the lock without a look. requires: what a stack
    asks for, in its order. required_by: `adapters.yaml` or the `org/name` of stacks, sorted. description: what the
    registry told of it, where it was asked.
    """

    ref: PackageRef
    registry: Registry | None
    revision: str | None
    requires: tuple[Requirement, ...]
    required_by: tuple[str, ...]
    reasons: tuple[str, ...]
    locked: bool
    description: Description | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How to choose among what satisfies.

    upgrade: the keys of names that may leave their locked version, ALL for every one, None for none. prereleases: take
    them like any other version. min_age: how long ago a version must have been published, as of `now` (both in UTC).
    """

    upgrade: frozenset[str] | None = None
    prereleases: bool = False
    min_age: timedelta = timedelta(0)
    now: datetime

    def frees(self, key: str) -> bool:
        """Say whether a name may leave its locked version."""
        return self.upgrade is not None and (key in self.upgrade or self.upgrade >= ALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """One version for every name that is wanted or required, sorted by name, and what a person should know."""

    choices: tuple[Choice, ...]
    notes: tuple[str, ...] = ()

    def choice(self, key: str) -> Choice | None:
        """Return the choice for a name's key."""
        return next((item for item in self.choices if item.ref.name.key == key), None)
