"""Removing from the store what no folder, no user and no process at work needs: mark and sweep.

What is kept: every package that a root's lockfile names (adapterhub/store/roots.py), that a lease names
(adapterhub/store/leases.py), or that was touched within the time of grace; and every blob and manifest of these.

How it is safe without a file lock, while others install, and when it is killed at any moment:

1. The leases are read first, then the roots: a package passes from a lease to a lockfile, never the other way.
2. What nothing needs is moved into `trash/<owner>/`, under its path in the store: a rename, which can be undone.
3. Leases and roots are read again, and what is wanted by now goes back. Whoever writes a lease after that looks for
   blobs after the move; and whoever misses a file of the store looks for it in the trash, and takes it out himself.
4. The rest of the trash is deleted. A trash whose process was killed is gone through by the next sweep like this.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from adapterhub.documents import read_lockfile
from adapterhub.errors import LocalIOError
from adapterhub.files import local_io, move_into
from adapterhub.processes import new_owner
from adapterhub.spec.digest import Digest
from adapterhub.store.content import TRASH_FOLDER, Store, StoredPackage
from adapterhub.store.inventory import Item, Kind, inventory, is_left_behind, item_at
from adapterhub.store.leases import dead_leases, is_read_only, leases
from adapterhub.store.roots import Root, RootState, forget, keep_copy, locked_packages, packages_of, roots

DEFAULT_GRACE = timedelta(hours=1)
_MOVED = (Kind.MARKER, Kind.MANIFEST, Kind.BLOB)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What a collection would do.

    packages: those that go. unused: their files and those of no package, to be moved. left: what dead processes left.
    forgotten: folders that were deleted. away: folders that cannot be reached, whose packages stay. kept: how many
    packages stay. young: how many of them only for being younger than the grace, and young_bytes what they and other
    young files would free. began: when it was looked; grace: in seconds.
    """

    packages: tuple[StoredPackage, ...] = ()
    unused: tuple[Item, ...] = ()
    left: tuple[Item, ...] = ()
    forgotten: tuple[Root, ...] = ()
    away: tuple[Root, ...] = ()
    kept: int = 0
    young: int = 0
    young_bytes: int = 0
    began: float
    grace: float

    @property
    def frees(self) -> int:
        """How many bytes come free."""
        return sum(item.frees for item in (*self.unused, *self.left))

    def is_old(self, item: Item) -> bool:
        """Say whether a file is past the grace."""
        return item.touched <= self.began - self.grace


@dataclass(slots=True)
class _Wanted:
    """What has to stay: markers by path, blobs and manifests by digest, partial downloads of leases by digest."""

    markers: set[Path]
    digests: set[Digest]
    leased: set[Digest]

    def add(self, store: Store, package: StoredPackage) -> None:
        self.markers.add(store.ref_path(package.ref, package.identity))
        self.digests.update(_digests(package))


def plan_collect(store: Store, *, also: Iterable[Path] = (), grace: timedelta = DEFAULT_GRACE) -> Sweep:
    """Find what nothing needs; nothing is changed. `also` are folders that count as roots (the user's environment).

    Raises:
        InvalidFileError: a lockfile, lease or root cannot be read, so nobody can say what it holds. LocalIOError.
    """
    began = time.time()
    sweep = Sweep(began=began, grace=grace.total_seconds())
    wanted = _wanted(store, also)
    items = list(inventory(store))
    going, young, young_bytes, kept = [], 0, 0, 0
    unused = []
    for item in items:
        if item.kind is not Kind.MARKER:
            continue
        if item.path in wanted.markers:  # what it names is known from the lockfile: no need to read it
            kept += 1
            continue
        package = store.package_at(item.path)
        if sweep.is_old(item):
            unused.append(item)
            going += [package] if package is not None else []
            continue
        young_bytes += item.frees
        if package is not None:
            kept, young = kept + 1, young + 1
            young_bytes += sum(_bytes_at(store, digest) for digest in _digests(package) - wanted.digests)
            wanted.add(store, package)
    for item in items:
        if item.kind in (Kind.BLOB, Kind.MANIFEST) and item.digest not in wanted.digests:
            if sweep.is_old(item):
                unused.append(item)
            else:
                young_bytes += item.frees
    remembered = roots(store)
    return replace(
        sweep,
        packages=tuple(sorted(going, key=lambda p: (p.ref.name.key, p.ref.version, p.identity))),
        unused=tuple(unused),
        left=tuple(_left(store, items, sweep, wanted)),
        forgotten=tuple(root for root in remembered if root.state is RootState.GONE),
        away=tuple(root for root in remembered if root.state is RootState.AWAY),
        kept=kept,
        young=young,
        young_bytes=young_bytes,
    )


def collect(store: Store, sweep: Sweep, *, also: Iterable[Path] = ()) -> Sweep:
    """Do what a plan says, as far as it still holds; return what was done.

    Raises:
        InvalidFileError, LocalIOError: as `plan_collect`; what was moved is back in its place.
    """
    wanted = _wanted(store, also)
    left = [item for item in sweep.left if _removed(store, item, wanted)]
    trash = store.root / TRASH_FOLDER / new_owner()
    moved = []
    try:
        # Markers first: a package that is about to go is first no package.
        for item in sorted(sweep.unused, key=lambda item: _MOVED.index(item.kind)):
            if _moved(store, item, trash, sweep):
                moved.append(item)
        wanted = _wanted(store, also)
        for path in store.marker_paths():  # what others installed meanwhile may share blobs with what was moved
            if path not in wanted.markers and (package := store.package_at(path)) is not None:
                wanted.add(store, package)
    except BaseException:
        for item in reversed(moved):
            _put_back(store, item, trash)
        _remove_folders(trash)
        raise
    back = [item for item in reversed(moved) if _is_wanted(item, wanted)]
    for item in back:
        _put_back(store, item, trash)
    gone = [item for item in moved if item not in back]
    for item in gone:
        aside = trash / item.path.relative_to(store.root)
        with local_io(aside, "remove the file"):
            _unlink(aside)
    for folder in (trash, *sorted({item.path.parent for item in sweep.left if item.kind is Kind.TRASH})):
        _remove_folders(folder, up_to=store.root)
    _remove_folders(store.root / "refs")
    for root in sweep.forgotten:
        forget(root)
    _keep_copies(store)
    markers = {item.path for item in gone}
    packages = tuple(p for p in sweep.packages if store.ref_path(p.ref, p.identity) in markers)
    return replace(
        sweep,
        packages=packages,
        unused=tuple(gone),
        left=tuple(left),
        kept=sweep.kept + len(sweep.packages) - len(packages),
    )


def _wanted(store: Store, also: Iterable[Path]) -> _Wanted:
    """Mark what leases, then roots, name."""
    found = _Wanted(set(), set(), set())
    for lease in leases(store):
        for package in lease.packages:
            found.add(store, package)
            found.leased.update(_digests(package))
    for root in roots(store):
        for package in packages_of(root):
            found.add(store, package)
    for folder in also:
        for package in locked_packages(read_lockfile(folder)):
            found.add(store, package)
    return found


def _digests(package: StoredPackage) -> set[Digest]:
    return {entry.digest for entry in package.files} | ({package.manifest} if package.manifest is not None else set())


def _bytes_at(store: Store, digest: Digest) -> int:
    found = (item_at(store.blob_path(digest), Kind.BLOB), item_at(store.manifest_path(digest), Kind.MANIFEST))
    return sum(item.frees for item in found if item is not None)


def _left(store: Store, items: list[Item], sweep: Sweep, wanted: _Wanted) -> list[Item]:
    """Return the files of dead processes: parts, temporary files, leases, and the trash of killed sweeps."""
    dead = set(dead_leases(store))
    found = []
    for item in items:
        age = sweep.began - item.touched
        if item.kind is Kind.TRASH:
            owner = item.path.relative_to(store.root / TRASH_FOLDER).parts[0]
            if is_left_behind(owner, age=age):
                found.append(item)  # old enough when it was moved
        elif item.kind is Kind.LEASE and item.path in dead:
            found.append(item)
        elif item.kind in (Kind.PARTIAL, Kind.TEMPORARY) and sweep.is_old(item):
            leased = item.kind is Kind.PARTIAL and item.digest in wanted.leased
            if not leased and is_left_behind(item.path.name, age=age):
                found.append(item)
    return found


def _removed(store: Store, item: Item, wanted: _Wanted) -> bool:
    """Remove what a dead process left; a file in its trash that is wanted goes back to its place instead."""
    if item.kind is Kind.TRASH:
        owner = store.root / TRASH_FOLDER / item.path.relative_to(store.root / TRASH_FOLDER).parts[0]
        place = store.root / item.path.relative_to(owner)
        original = replace(item, path=place, kind=_kind_of(place, store))
        if _is_wanted(original, wanted):
            _put_back(store, original, owner)
            return False
    with local_io(item.path, "remove the file"):
        return _unlink(item.path)


def _kind_of(path: Path, store: Store) -> Kind:
    first = path.relative_to(store.root).parts[0]
    return {"refs": Kind.MARKER, "manifests": Kind.MANIFEST, "blobs": Kind.BLOB}.get(first, Kind.UNKNOWN)


def _is_wanted(item: Item, wanted: _Wanted) -> bool:
    return item.path in wanted.markers if item.kind is Kind.MARKER else item.digest in wanted.digests


def _moved(store: Store, item: Item, trash: Path, sweep: Sweep) -> bool:
    """Move a file into the trash, unless somebody touched it since the plan was made."""
    now = item_at(item.path, item.kind)
    if now is None or not sweep.is_old(now):
        return False
    aside = trash / item.path.relative_to(store.root)
    with local_io(item.path, "move the file into the trash"):
        return move_into(item.path, aside)  # or another sweep was faster


def _put_back(store: Store, item: Item, trash: Path) -> None:
    aside = trash / item.path.relative_to(store.root)
    with local_io(item.path, "move the file back out of the trash"):
        if os.path.lexists(item.path):  # written anew meanwhile, with the same content
            _unlink(aside)
            return
        move_into(aside, item.path)  # or its user took it out himself


def _unlink(path: Path) -> bool:
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    except PermissionError:
        if os.name != "nt":
            raise
        path.chmod(0o644)  # Windows keeps read-only files
        path.unlink()
    return True


def _remove_folders(folder: Path, *, up_to: Path | None = None) -> None:
    """Remove the empty folders below a folder and itself, then the empty ones above it, below `up_to`."""
    for root, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):
            Path(root).rmdir()
    for above in folder.parents:
        if up_to is None or above == up_to or not above.is_relative_to(up_to):
            return
        with suppress(OSError):
            above.rmdir()


def _keep_copies(store: Store) -> None:
    try:
        for root in roots(store):
            if root.state is RootState.PRESENT:
                keep_copy(root)
    except LocalIOError as error:
        if not is_read_only(error):
            raise
