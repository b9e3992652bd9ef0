"""Does a package fit the base model of an environment: decided before a weight is moved."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from adapterhub.environment import Environment
from adapterhub.errors import IncompatibleError
from adapterhub.registry import Description
from adapterhub.spec.lockfile import LockedBase, Lockfile
from adapterhub.spec.project import PROJECT_FILE

if TYPE_CHECKING:
    from adapterhub.bases import BaseRecord


@dataclass(slots=True, kw_only=True)
class BaseCheck:
    """The base model that packages are held against, and what was found on the way.

    asked: its id, None where nothing names one. actual: what the base store, or else the lock, knows of it. record: the
    base store's record. own: it is the environment's, not one given for this command alone. allow: a mismatch is
    recorded rather than refused.
    """

    asked: str | None
    actual: LockedBase | None
    record: BaseRecord | None = None
    own: bool
    allow: bool
    warnings: list[str] = field(default_factory=list)

    def settled(self, lock: Lockfile) -> bool:
        """Say whether what is locked was checked against this very base when it was locked."""
        return self.actual is None or lock.base == self.actual

    def locked(self, lock: Lockfile) -> LockedBase | None:
        """Return the base that the lock will name: the environment's own where it is known."""
        if self.own:
            return self.actual
        return lock.base

    def mismatch(self, description: Description, *, allowed_before: bool) -> bool:
        """Hold a package against the base by manifest and header; return True for a mismatch that is allowed.

        allowed_before: the lock says that the user overrode it when this very package was installed.

        Raises:
            IncompatibleError: it was trained on another base, or its weights do not fit this one.
        """
        if self.asked is None:
            return False
        name, recorded = str(description.ref), description.manifest.base_model
        if self.actual is None:
            text = f"the base model {self.asked} is not in the base store, so the fit of {name} was not checked"
            self.warnings.append(text + ("" if self.asked == recorded.id else f"; it was trained on {recorded.id}"))
            return False
        if description.manifest.kind == "stack":
            return self._stack_mismatch(description, allowed_before=allowed_before)
        # Only a package that is new to this base pays for the checks' imports.
        from adapterhub.ops._fit_report import WRONG_BASE, fit_report
        from adapterhub.ops._refuse import refuse_faults

        report = fit_report(description, self.record if self.record is not None else self.actual.base)
        wrong = [item for item in report.errors if item.code == WRONG_BASE]
        allowed = bool(wrong) and (self.allow or allowed_before)
        if allowed:
            self.warnings.append(f"{name}: {wrong[0].message}; allowed, and recorded in the lock")
            report = replace(report, findings=tuple(item for item in report.findings if item not in wrong))
        override = f"; if you know better: adapt install {name} --allow-base-mismatch" if wrong else ""
        refuse_faults(
            report,
            f"does not fit the base model {self.actual.base.id}",
            hint=f"install it where {recorded.id} is the base model{override}",
        )
        self.warnings += [f"{name}: {item.message}" for item in report.warnings]
        return allowed

    def _stack_mismatch(self, description: Description, *, allowed_before: bool) -> bool:
        """Hold the base that a stack package names against this one; its members are checked each by itself."""
        from adapterhub.fingerprints import Verdict, compare

        assert self.actual is not None
        recorded = description.manifest.base_model
        if compare(recorded, self.actual.base) is not Verdict.DIFFERENT:
            return False
        name = str(description.ref)
        if self.allow or allowed_before:
            self.warnings.append(f"{name}: a stack for {recorded.id}; allowed, and recorded in the lock")
            return True
        raise IncompatibleError(
            f"is a stack for the base model {recorded.id}, not for {self.actual.base.id}",
            where=name,
            hint=f"install it where {recorded.id} is the base model; "
            f"if you know better: adapt install {name} --allow-base-mismatch",
        )


def base_check(environment: Environment, *, base: str | None, allow: bool) -> BaseCheck:
    """Return the check against the base that is given, else that of adapters.yaml.

    Raises:
        UnsatisfiedError: the given base is not in the base store.
    """
    project = environment.project
    asked = base if base is not None else project.base_model
    own = base is None or base == project.base_model
    if asked is None:
        return BaseCheck(asked=None, actual=None, own=True, allow=allow)
    from adapterhub.bases import BaseStore

    bases = BaseStore(environment.settings)
    record = bases.find(asked) if base is None else bases.read(asked)
    if record is None:
        # Another machine's base store knew it: what it recorded in the lock is as good.
        known = environment.lock.base
        return BaseCheck(asked=asked, actual=known if known and known.base.id == asked else None, own=own, allow=allow)
    actual = LockedBase(base=record.ref, source=record.source)
    wanted = project.base_revision if own else None
    check = BaseCheck(asked=asked, actual=actual, record=record, own=own, allow=allow)
    if wanted is not None and record.ref.revision is not None and record.ref.revision != wanted:
        check.warnings.append(
            f"{PROJECT_FILE} asks for revision {wanted} of {asked}, the base store has {record.ref.revision}"
        )
    return check
