"""The manifest of a stack package: a named stack of a project, its members by full name and range."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from adapterhub.environment import Environment
from adapterhub.errors import IncompatibleError, UnsatisfiedError, UsageError
from adapterhub.fingerprints import Verdict, compare
from adapterhub.ops._facts import Facts
from adapterhub.package import open_package
from adapterhub.spec.base_model import BaseModelRef
from adapterhub.spec.lockfile import LockedPackage
from adapterhub.spec.manifest import Manifest, StackRequirement
from adapterhub.spec.project import PROJECT_FILE
from adapterhub.spec.refs import Requirement, check_part, parse_version
from adapterhub.spec.stack import Stack


def stack_manifest(word: str, facts: Facts, *, environment: Environment) -> Manifest:
    """Return the manifest of a package for the stack that adapters.yaml calls `word`.

    A member's range is what adapters.yaml asks for, or from the installed version up to the next major one.

    Raises:
        UsageError: there is no such stack, or no version is given. UnsatisfiedError: a member is not installed.
        IncompatibleError: the members were trained on different base models.
    """
    stack = environment.project.stacks.get(word)
    if stack is None:
        known = ", ".join(sorted(environment.project.stacks)) or "none"
        raise UsageError(f"{PROJECT_FILE} has no stack {word!r}", where="--stack", hint=f"its stacks: {known}")
    if facts.version is None:
        raise UsageError("a stack package needs a version", where="--version", hint="--version 1.0.0")
    members = [(_entry(layer.word, environment, stack), layer.weight) for layer in stack.layers]
    for given, option in ((facts.base, "--base"), (facts.labels, "--label"), (facts.quantization, "--load-in-…")):
        if given:
            raise UsageError("says nothing about a stack, which has no weights", where=option, hint="leave it out")
    try:
        return Manifest(
            name=check_part(facts.name if facts.name is not None else word, "a package's name"),
            version=parse_version(facts.version),
            kind="stack",
            summary=facts.summary or f"The stack {stack}.",
            license=facts.license,
            keywords=facts.keywords,
            domains=facts.domains,
            languages=facts.languages,
            base_model=_common_base([entry for entry, _ in members], environment),
            requires=tuple(
                StackRequirement(requirement=_range(entry, environment), weight=weight) for entry, weight in members
            ),
            combination=stack.combination,
            parameters=stack.parameters,
        )
    except ValueError as error:
        raise UsageError(str(error), where="--name" if "name" in str(error) else "--version") from error


def _entry(word: str, environment: Environment, stack: Stack) -> LockedPackage:
    if word in environment.project.stacks:
        raise UsageError(
            f"{word!r} is a stack of {PROJECT_FILE} itself",
            where="--stack",
            hint="publish that one first, install it, and name the package in the stack",
        )
    entry = environment.lock.by_alias(word) or next(
        (item for item in environment.lock.entries if str(item.name) == word), None
    )
    if entry is None or entry.version.local is not None:
        raise UnsatisfiedError(
            f"{word!r} of the stack {stack} is no published package that others could install",
            hint="publish it, then install it: adapt publish DIR --to org/name",
        )
    return entry


def _range(entry: LockedPackage, environment: Environment) -> Requirement:
    wanted = next((item for item in environment.project.adapters.values() if item.name.key == entry.name.key), None)
    if wanted is not None and str(wanted.specifier):
        return wanted
    return Requirement(entry.name, SpecifierSet(f">={entry.version},<{_next(entry.version)}"))


def _next(version: Version) -> str:
    """Return the first version that may break what worked with this one: the next major, or minor below 1.0."""
    return str(version.major + 1) if version.major else f"0.{version.minor + 1}"


def _common_base(entries: list[LockedPackage], environment: Environment) -> BaseModelRef:
    bases = [(entry, open_package(environment.path_of(entry)).manifest.base_model) for entry in entries]
    for entry, base in bases[1:]:
        if compare(base, bases[0][1]) is Verdict.DIFFERENT:
            raise IncompatibleError(
                "the members were trained on different base models",
                details=(f"{bases[0][0].ref}: {bases[0][1].id}", f"{entry.ref}: {base.id}"),
                hint="stack adapters of one base model",
            )
    return bases[0][1]
