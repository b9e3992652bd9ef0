"""`adapt cache info`: what adapterhub keeps on this disk, and how much of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adapterhub.bases import BaseState, BaseStore, look_at
from adapterhub.errors import InvalidFileError, LocalIOError
from adapterhub.settings import Settings
from adapterhub.store import Store
from adapterhub.store.inventory import Kind, inventory
from adapterhub.store.roots import Root, RootState, packages_of, roots


@dataclass(frozen=True, slots=True, kw_only=True)
class KindUse:
    """How many files of one kind the store holds, and their bytes."""

    kind: Kind
    files: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentUse:
    """One folder that uses the store.

    state: `present`, `away` (it cannot be reached now) or `gone` (deleted; the next `adapt gc` forgets it). packages:
    how many its lockfile names, None where that cannot be read.
    """

    folder: Path
    state: RootState
    packages: int | None

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {"folder": str(self.folder), "state": self.state.value, "packages": self.packages}


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """What lies below the home folder, and elsewhere on its behalf.

    store: by kind. packages: with a readable marker. bases: base models, of which `referenced_bytes` lie in folders of
    others (the Hub's cache, a folder that was added), and `converted_bytes` below the home folder. cache_bytes: what
    can be made again.
    """

    home: Path
    store: tuple[KindUse, ...]
    packages: int
    environments: tuple[EnvironmentUse, ...]
    bases: int
    referenced_bytes: int
    converted_bytes: int
    cache_bytes: int

    @property
    def store_bytes(self) -> int:
        """All bytes of the store."""
        return sum(use.size for use in self.store)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "home": str(self.home),
            "store": {
                "bytes": self.store_bytes,
                "packages": self.packages,
                "kinds": {use.kind.value: {"files": use.files, "bytes": use.size} for use in self.store},
            },
            "environments": [use.to_data() for use in self.environments],
            "bases": {
                "models": self.bases,
                "referenced_bytes": self.referenced_bytes,
                "converted_bytes": self.converted_bytes,
            },
            "cache_bytes": self.cache_bytes,
        }


def cache_info(settings: Settings) -> CacheInfo:
    """Measure what is kept; nothing is changed.

    Raises:
        LocalIOError: a folder cannot be read. InvalidFileError: a record of a root or a base model is broken.
    """
    store = Store(settings.store)
    uses = {kind: [0, 0] for kind in Kind}
    for item in inventory(store):
        uses[item.kind][0] += 1
        uses[item.kind][1] += item.size
    bases = BaseStore(settings)
    records = [record for record in bases.list() if look_at(record) is not BaseState.GONE]
    converted = [record for record in records if record.path.is_relative_to(bases.root)]
    return CacheInfo(
        home=settings.home,
        store=tuple(KindUse(kind=kind, files=files, size=size) for kind, (files, size) in uses.items() if files),
        packages=len(store.packages()),
        environments=tuple(_environments(settings, store)),
        bases=len(records),
        referenced_bytes=sum(record.size for record in records if record not in converted),
        converted_bytes=sum(_bytes_below(record.path) for record in converted),
        cache_bytes=_bytes_below(settings.cache),
    )


def _environments(settings: Settings, store: Store) -> Iterator[EnvironmentUse]:
    user = settings.user_environment
    known = [root.folder for root in roots(store)]
    if user.is_dir() and Path(os.path.realpath(user)) not in known:
        yield _use_of(Root(folder=user, path=store.root / "roots" / "user.json"))
    for root in roots(store):
        yield _use_of(root)


def _use_of(root: Root) -> EnvironmentUse:
    try:
        packages: int | None = len(packages_of(root))
    except (InvalidFileError, LocalIOError):
        packages = None
    return EnvironmentUse(folder=root.folder, state=root.state, packages=packages)


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).lstat().st_size
            except OSError:
                continue
    return total
