"""`adapt list`: what is installed, from the lock and the folders alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from adapterhub.environment import Environment
from adapterhub.spec.lockfile import LockedPackage


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedAdapter:
    """One adapter of an environment: what was asked for, what is locked, whether its folder is there.

    owner: `project` or `user`.
    """

    alias: str
    entry: LockedPackage
    path: Path
    owner: str

    @property
    def installed(self) -> bool:
        """True when the adapter's folder is there; `adapt install` brings a missing one back."""
        return self.path.is_dir()

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "alias": self.alias,
            "name": str(self.entry.name),
            "version": str(self.entry.version),
            "registry": self.entry.registry,
            "environment": self.owner,
            "path": str(self.path),
            "installed": self.installed,
            "bytes": sum(file.size for file in self.entry.files),
            "base_mismatch": self.entry.base_mismatch,
        }


def list_adapters(environment: Environment) -> tuple[ListedAdapter, ...]:
    """Return the installed adapters of an environment, then those of the user's own that it can use too.

    Raises:
        InvalidFileError: a lockfile breaks its format.
    """
    found: dict[str, ListedAdapter] = {}
    for place in environment.chain:
        owner = "user" if place.is_user else "project"
        for entry in place.lock.entries:
            # An alias of the project hides the same alias of the user.
            if entry.alias is not None and entry.alias not in found:
                path = place.adapter_path(entry.alias)
                found[entry.alias] = ListedAdapter(alias=entry.alias, entry=entry, path=path, owner=owner)
    return tuple(found.values())
