"""Does a package fit the base model of an environment: decided before a weight is moved."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapterhub.environment import Environment
from adapterhub.errors import IncompatibleError
from adapterhub.registry import Description
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.lockfile import LockedBase, Lockfile
from adapterhub.spec.project import PROJECT_FILE


@dataclass(slots=True, kw_only=True)
class BaseCheck:
    """The base model that packages are held against, and what was found on the way.

    asked: its id, None where nothing names one. actual: what the base store knows of it. own: it is the environment's,
    not one given for this command alone. allow: a mismatch is recorded rather than refused.
    """

    asked: str | None
    actual: LockedBase | None
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
        """Compare what a package was trained on with the base; return True for a mismatch that is allowed.

        allowed_before: the lock says that the user overrode it when this very package was installed.

        Raises:
            IncompatibleError: it was trained on another base.
        """
        if self.asked is None:
            return False
        recorded, name = description.manifest.base_model, str(description.ref)
        if self.actual is None:
            self._note_unknown(name, recorded)
            return False
        from adapterhub.fingerprints import Verdict, compare, differing_parts

        actual = self.actual.base
        verdict = compare(recorded, actual)
        if verdict is Verdict.DIFFERENT:
            parts = ", ".join(differing_parts(recorded.fingerprints, actual.fingerprints))
            message = f"{name} was trained on {recorded.id}, not on {actual.id}" + (
                f" (other {parts})" if parts else ""
            )
            if not (self.allow or allowed_before):
                raise IncompatibleError(
                    message,
                    where=name,
                    hint=f"install it where {recorded.id} is the base model, or, if you know better: "
                    f"adapt install {name} --allow-base-mismatch",
                )
            self.warnings.append(f"{message}; allowed, and recorded in the lock")
            return True
        if verdict is Verdict.UNKNOWN:
            self.warnings.append(
                f"{name} does not record which weights of {recorded.id} it was trained on: not checked"
            )
        elif verdict is Verdict.REVISION:
            self.warnings.append(f"{name} was trained on another revision of {recorded.id}")
        elif verdict is Verdict.SIBLING:
            self.warnings.append(f"{name} was trained on {recorded.id}, a relative of {actual.id}")
        return False

    def _note_unknown(self, name: str, recorded: BaseModelRef) -> None:
        text = f"the base model {self.asked} is not in the base store, so the fit of {name} was not checked"
        if self.asked != recorded.id:
            text += f"; it was trained on {recorded.id}"
        self.warnings.append(text)


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
    check = BaseCheck(asked=asked, actual=actual, own=own, allow=allow)
    if wanted is not None and record.ref.revision is not None and record.ref.revision != wanted:
        check.warnings.append(
            f"{PROJECT_FILE} asks for revision {wanted} of {asked}, the base store has {record.ref.revision}"
        )
    return check
