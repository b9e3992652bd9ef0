"""`adapt why`: every way that leads from adapters.yaml to an installed package."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from adapterhub.environment import Environment
from adapterhub.errors import UnsatisfiedError
from adapterhub.ops._graph import Asked, asked_by_package, asked_by_project
from adapterhub.spec._decode import suggest
from adapterhub.spec.lockfile import LockedPackage
from adapterhub.spec.project import PROJECT_FILE

# Stacks of stacks can lead to one package in exponentially many ways; nobody reads more than these.
MAX_PATHS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Reasons:
    """Why a package is installed: each path goes from adapters.yaml to it, one requirement a step.

    more: there are more than MAX_PATHS paths.
    """

    environment: Environment
    entry: LockedPackage
    paths: tuple[tuple[Asked, ...], ...]
    more: bool = False

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "name": str(self.entry.name),
            "version": str(self.entry.version),
            "alias": self.entry.alias,
            "environment": str(self.environment.folder),
            "paths": [[_step(asked) for asked in path] for path in self.paths],
            "more": self.more,
        }


def _step(asked: Asked) -> dict[str, object]:
    return {
        "by": asked.by,
        "requirement": None if asked.requirement is None else str(asked.requirement),
        "name": str(asked.name),
        "version": None if asked.entry is None else str(asked.entry.version),
        "alias": asked.alias,
    }


def find_reasons(word: str, *, environment: Environment) -> Reasons:
    """Return why a package is installed, by its alias or full name; the user's own environment is looked at too.

    Raises:
        UnsatisfiedError: it is not installed.
    """
    for place in environment.chain:
        entry = _entry(word, place)
        if entry is not None:
            found = list(islice(_paths(place, entry), MAX_PATHS + 1))
            return Reasons(environment=place, entry=entry, paths=tuple(found[:MAX_PATHS]), more=len(found) > MAX_PATHS)
    raise _not_installed(word, environment)


def _entry(word: str, environment: Environment) -> LockedPackage | None:
    named = environment.lock.by_alias(word)
    if named is not None:
        return named
    return next((entry for entry in environment.lock.entries if word in (str(entry.name), str(entry.ref))), None)


def _not_installed(word: str, environment: Environment) -> UnsatisfiedError:
    for place in environment.chain:
        wanted = place.project.adapters
        if word in wanted or word in {str(requirement.name) for requirement in wanted.values()}:
            return UnsatisfiedError(
                f"{word} is in {PROJECT_FILE} but not installed", where=str(place.folder), hint="adapt install"
            )
    entries = [entry for place in environment.chain for entry in place.lock.entries]
    known = sorted({str(entry.name) for entry in entries} | {entry.alias for entry in entries if entry.alias})
    near = suggest(word, known)
    listed = ", ".join(known[:10]) or "nothing"
    hint = f"did you mean {near}?" if near else f"installed: {listed}"
    return UnsatisfiedError(f"{word} is not installed", where=str(environment.folder), hint=hint)


def _paths(environment: Environment, entry: LockedPackage) -> Iterator[tuple[Asked, ...]]:
    """Walk over the ways to a package, only through packages from which it can be reached."""
    leading = _leading_to(environment, entry)

    def below(asked: Asked, path: tuple[Asked, ...]) -> Iterator[tuple[Asked, ...]]:
        way = (*path, asked)
        if asked.name.key == entry.name.key:
            yield way
            return
        if asked.entry is None or asked.name.key not in leading or any(one.name == asked.name for one in path):
            return
        for inner in asked_by_package(environment, asked.entry):
            yield from below(inner, way)

    for asked in asked_by_project(environment):
        if asked.requirement is not None:
            yield from below(asked, ())


def _leading_to(environment: Environment, entry: LockedPackage) -> set[str]:
    """Return the keys of the packages that require one, directly or by others."""
    reached, waiting = set[str](), [entry.name.key]
    while waiting:
        key = waiting.pop()
        for other in environment.lock.entries:
            asks = any(requirement.name.key == key for requirement in other.requires)
            if asks and other.name.key not in reached:
                reached.add(other.name.key)
                waiting.append(other.name.key)
    return reached


def told(path: tuple[Asked, ...]) -> str:
    """Return one path as a line: `adapters.yaml -> acme/clinic>=1 (1.1.0) -> acme/legal@1.0.0 (1.0.0)`."""
    steps = [PROJECT_FILE]
    for asked in path:
        version = f" ({asked.entry.version})" if asked.entry is not None else ""
        steps.append(f"{asked.requirement}{version}")
    return " -> ".join(steps)
