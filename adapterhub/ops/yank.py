"""`adapt yank`: a published version that nobody should choose any more; what locked it keeps working."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapterhub.environment import Environment
from adapterhub.errors import UnsatisfiedError, UsageError
from adapterhub.registry import Registry
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.refs import PackageRef

MAX_REASON = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class YankPlan(Plan):
    """Which version's mark will be set or taken away. reason: None takes it away, "" gives none."""

    ref: PackageRef
    registry: Registry
    reason: str | None
    before: str | None

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return what it is about."""
        was = "no" if self.before is None else self.before or "yes, without a reason"
        facts = (("package", str(self.ref)), ("registry", self.registry.location), ("yanked before", was))
        return (*facts, ("reason", self.reason)) if self.reason else facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Yanked:
    """What came of it: whether the version is yanked now, why, and whether anything changed."""

    ref: PackageRef
    reason: str | None
    changed: bool

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "ref": str(self.ref),
            "yanked": self.reason is not None,
            "reason": self.reason,
            "changed": self.changed,
        }


def plan_yank(
    text: str,
    *,
    environment: Environment,
    reason: str | None = None,
    undo: bool = False,
    registry: str | None = None,
    cwd: Path | None = None,
) -> YankPlan:
    """Look a published version up and decide what yanking it, or taking that back, would change.

    Raises:
        UsageError: no exact version is named, or a reason makes no sense. UnsatisfiedError: there is no such version.
        NetworkError: the registry does not answer.
    """
    try:
        ref = PackageRef.parse(text)
    except ValueError as error:
        raise UsageError(str(error), where=text, hint="adapt yank org/name@1.2.0 --reason TEXT") from error
    if undo and reason is not None:
        raise UsageError("a yank that is taken back needs no reason", where="--reason", hint="leave --reason out")
    told = None if undo else " ".join((reason or "").split())
    if told is not None and len(told) > MAX_REASON:
        raise UsageError(f"has more than {MAX_REASON} characters", where="--reason", hint="say it more briefly")
    opened = environment.registry_of(ref.name, given=registry, cwd=cwd if cwd is not None else Path.cwd())
    listed = opened.versions(ref.name)
    found = next((item for item in listed if item.version == ref.version), None)
    if found is None:
        known = ", ".join(str(item.version) for item in listed[-10:])
        raise UnsatisfiedError(f"the registry has no {ref}", where=opened.location, hint=f"available: {known}")
    if ref.version.local is not None:
        raise UnsatisfiedError(
            "a plain adapter has no published version that could be yanked",
            where=text,
            hint="publish it with a version: adapt pack DIR, then adapt publish DIR --to org/name",
        )
    return YankPlan(
        verb="yank",
        steps=(_step(ref, found.yanked, told),),
        ref=ref,
        registry=opened,
        reason=told,
        before=found.yanked,
    )


def _step(ref: PackageRef, before: str | None, reason: str | None) -> Step:
    if before == reason:
        return Step(action="keep", subject=str(ref), detail="not yanked" if reason is None else "yanked already")
    if reason is None:
        return Step(action="restore", subject=str(ref), detail="it may be chosen again")
    return Step(action="yank", subject=str(ref), detail="only what locks or pins it still takes it")


def yank(plan: YankPlan) -> Yanked:
    """Do what the plan says.

    Raises:
        UnsatisfiedError: there is no such version any more. AuthorizationError: the token may not write there.
        NetworkError: the registry does not answer.
    """
    changed = plan.registry.set_yanked(plan.ref, plan.reason)
    return Yanked(ref=plan.ref, reason=plan.reason, changed=changed)
