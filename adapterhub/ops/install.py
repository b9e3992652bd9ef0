"""`adapt install`: from a requirement, or from adapters.yaml and its lock, to folders that PEFT loads."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from adapterhub.environment import Environment
from adapterhub.errors import UsageError
from adapterhub.ops._install_plan import InstallPlan, PlannedPackage
from adapterhub.ops._installation import Installed, carry_out
from adapterhub.ops._planning import Choosing, plan_environment
from adapterhub.progress import SILENT, Progress
from adapterhub.spec.project import PROJECT_FILE
from adapterhub.spec.refs import Requirement, check_alias

__all__ = ["InstallPlan", "Installed", "PlannedPackage", "install", "parse_requirement", "plan_install"]


def parse_requirement(text: str) -> Requirement:
    """Read what a person asks for: `org/name`, `org/name@1.2.0`, `org/name>=1.2,<2` or `org/name#REV`.

    Raises:
        UsageError: it is of another form.
    """
    try:
        return Requirement.parse(text)
    except ValueError as error:
        hint = "adapt install org/name, org/name@X.Y.Z, 'org/name>=1.2,<2' or org/name#REV"
        raise UsageError(str(error), where=text, hint=hint) from error


def plan_install(
    requirement: Requirement | None = None,
    *,
    environment: Environment,
    alias: str | None = None,
    registry: str | None = None,
    base: str | None = None,
    allow_base_mismatch: bool = False,
    prereleases: bool = False,
    min_age: timedelta | None = None,
    cwd: Path | None = None,
) -> InstallPlan:
    """Decide what to install: one package and what it needs, or without a requirement all that adapters.yaml asks for.

    A version that is locked stays as long as it satisfies the requirement, and costs no look at the registry when the
    store has it. registry: a folder, relative to `cwd`, or `hub`. base: the base model to check against, in place of
    the project's. prereleases, min_age: which versions may be chosen.

    Raises:
        UnsatisfiedError: no such package or version. UsageError: the alias is taken, or no registry is known.
        IncompatibleError: made for another base. IntegrityError: the registry's copy is not what was locked.
    """
    choosing = Choosing(
        registry=registry,
        base=base,
        allow_base_mismatch=allow_base_mismatch,
        prereleases=prereleases,
        min_age=min_age,
        cwd=cwd if cwd is not None else Path.cwd(),
    )
    adapters = dict(environment.project.adapters)
    if requirement is None:
        if alias is not None:
            raise UsageError("an alias needs the package it is for", where="--as", hint="adapt install NAME --as ALIAS")
        return plan_environment("install", environment, adapters, choosing)
    chosen = _alias_for(requirement, alias, environment)
    adapters[chosen] = _as_asked(requirement, chosen, environment)
    return plan_environment("install", environment, adapters, choosing, only=requirement.name)


def _alias_for(requirement: Requirement, given: str | None, environment: Environment) -> str:
    """Return the alias a package goes by: the given one, the one it has, or the default.

    Raises:
        UsageError: the alias is malformed, or means something else here.
    """
    name, project, lock = requirement.name, environment.project, environment.lock
    known = {alias: wanted.name for alias, wanted in project.adapters.items()}
    known |= {entry.alias: entry.name for entry in lock.entries if entry.alias}
    present = next((alias for alias, other in known.items() if other.key == name.key), None)
    if present is not None and str(known[present]) != str(name):
        raise UsageError(f"{name} differs from the installed {known[present]} in case alone", hint="use one spelling")
    if present is not None and given not in (None, present):
        raise UsageError(
            f"{name} is installed as {present!r} already", where="--as", hint=f"first: adapt uninstall {present}"
        )
    alias = present or given or name.default_alias
    try:
        check_alias(alias)
    except ValueError as error:
        raise UsageError(str(error), where="--as", hint=f"--as {name.default_alias}") from error
    taken = known.get(alias)
    if taken is not None and taken.key != name.key:
        raise UsageError(f"the alias {alias!r} is taken by {taken}", hint="choose another with --as ALIAS")
    if alias in project.stacks:
        raise UsageError(f"{alias!r} is a stack in {PROJECT_FILE}", hint="choose another alias with --as ALIAS")
    return alias


def _as_asked(requirement: Requirement, alias: str, environment: Environment) -> Requirement:
    """Return what adapters.yaml will say: a bare name leaves the range that is there."""
    present = environment.project.adapters.get(alias)
    bare = not requirement.specifier and requirement.revision is None
    return present if present is not None and bare else requirement


def install(plan: InstallPlan, *, progress: Progress = SILENT) -> Installed:
    """Do what the plan says: all packages into the store, then their folders, then adapters.yaml, the lock last.

    Raises:
        IntegrityError: a registry's bytes are not what its manifest says; nothing was installed. LocalIOError.
    """
    return carry_out(plan, progress=progress)
