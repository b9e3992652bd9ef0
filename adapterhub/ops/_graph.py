"""Who asks for whom in an environment: read from adapters.yaml and adapters.lock alone."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.documents import parse_json
from adapterhub.environment import Environment
from adapterhub.errors import InvalidFileError
from adapterhub.spec.lockfile import LockedPackage
from adapterhub.spec.project import PROJECT_FILE
from adapterhub.spec.refs import PackageName, Requirement
from adapterhub.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One thing that is asked for, and what the lock has for it.

    by: `adapters.yaml`, or the full name of the stack package that asks. entry: None where the lock has nothing.
    requirement: None for an alias that is locked though adapters.yaml no longer asks for it. weight: the member's
    coefficient in its stack; None for what adapters.yaml asks for, and where the stack's manifest is not in the store.
    """

    by: str
    requirement: Requirement | None
    entry: LockedPackage | None
    alias: str | None = None
    weight: float | None = None

    @property
    def name(self) -> PackageName:
        """The package's full name, in the lock's spelling."""
        if self.entry is not None:
            return self.entry.name
        assert self.requirement is not None
        return self.requirement.name


def asked_by_project(environment: Environment) -> tuple[Asked, ...]:
    """Return what adapters.yaml asks for, by alias, then what is locked under an alias that it no longer has."""
    lock, wanted = environment.lock, environment.project.adapters
    found = [
        Asked(by=PROJECT_FILE, requirement=requirement, entry=lock.by_name(requirement.name), alias=alias)
        for alias, requirement in sorted(wanted.items())
    ]
    known = {item.name.key for item in found}
    found += [
        Asked(by=PROJECT_FILE, requirement=None, entry=entry, alias=entry.alias)
        for entry in sorted(lock.entries, key=lambda entry: entry.alias or "")
        if entry.alias is not None and entry.name.key not in known
    ]
    return tuple(found)


def asked_by_package(environment: Environment, entry: LockedPackage) -> tuple[Asked, ...]:
    """Return what a stack package asks for, in its order; nothing for an adapter."""
    weights = _weights(environment, entry) if entry.requires else {}
    return tuple(
        Asked(
            by=str(entry.name),
            requirement=requirement,
            entry=environment.lock.by_name(requirement.name),
            weight=weights.get(requirement.name.key),
        )
        for requirement in entry.requires
    )


def _weights(environment: Environment, entry: LockedPackage) -> dict[str, float]:
    """Return the members' coefficients by name, from the stored manifest; nothing where it is not whole."""
    from adapterhub.spec.manifest import Manifest

    data = None if entry.manifest is None else Store(environment.settings.store).manifest_bytes(entry.manifest)
    if data is None:
        return {}
    where = str(entry.ref)
    try:
        manifest = Manifest.from_data(parse_json(data, where=where), where=where)
    except InvalidFileError:  # of a newer format, say; the tree needs no more than names
        return {}
    return {item.requirement.name.key: item.weight for item in manifest.requires}
