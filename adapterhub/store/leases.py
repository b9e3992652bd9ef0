"""Which packages a process that is at work here needs, so that a sweep of the store leaves them alone.

    leases/<owner>.json   the packages that one process is about to use; it is gone when the process is done with them

A lease is on the disk before its process looks for a first blob, and stays until a lockfile names what was installed.
Whoever sweeps reads the leases before the lockfiles, and both again after it moved things aside: a package is then seen
in one of the two, or its process comes to look when the things are moved already (adapterhub/store/collect.py). No
file lock is needed for that, and none is taken.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from adapterhub.documents import parse_json
from adapterhub.errors import InvalidFileError, LocalIOError
from adapterhub.files import local_io, write_atomic
from adapterhub.processes import is_abandoned, new_owner, owner_in
from adapterhub.spec._decode import Faults, Reader
from adapterhub.spec.digest import canonical_json
from adapterhub.store.content import Store, StoredPackage

LEASE_VERSION = "1.0"
# What a store that we may only read answers: nothing can be swept there by us, and what is missing cannot be added.
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """One lease as another process finds it."""

    path: Path
    packages: tuple[StoredPackage, ...]


@contextmanager
def lease(store: Store, packages: Iterable[StoredPackage]) -> Iterator[None]:
    """Keep packages from being swept while the block runs; look for their blobs inside it, not before.

    In a store that this process may only read there is nothing to write, and the block runs without a lease.

    Raises:
        LocalIOError: the disk said no.
    """
    path = _folder(store) / f"{new_owner()}.json"
    data = {"lease_version": LEASE_VERSION, "packages": [package.to_data() for package in packages]}
    try:
        write_atomic(path, canonical_json(data))
    except LocalIOError as error:
        if not is_read_only(error):
            raise
    try:
        yield
    finally:
        # A lease that cannot be removed holds its packages until this process is gone, and nothing longer.
        with suppress(OSError):
            path.unlink(missing_ok=True)


def leases(store: Store) -> tuple[Lease, ...]:
    """Return the leases of processes that may be at work.

    Raises:
        InvalidFileError: one of them cannot be read, so nobody can say what it holds. LocalIOError.
    """
    found = []
    for path in _paths(store):
        if _is_dead(path):
            continue
        with local_io(path, "read the lease"):
            try:
                data = path.read_bytes()
            except FileNotFoundError:  # its process is done
                continue
        found.append(Lease(path=path, packages=_decode(data, where=str(path))))
    return tuple(found)


def dead_leases(store: Store) -> tuple[Path, ...]:
    """Return the lease files whose process is gone."""
    return tuple(path for path in _paths(store) if _is_dead(path))


def is_read_only(error: LocalIOError) -> bool:
    """Say whether a write failed because this process may only read there."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in READ_ONLY


def _folder(store: Store) -> Path:
    return store.root / "leases"


def _paths(store: Store) -> list[Path]:
    folder = _folder(store)
    with local_io(folder, "read the leases"):
        try:
            names = sorted(path.name for path in folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
    return [folder / name for name in names if name.endswith(".json") and owner_in(name) == name[:-5]]


def _is_dead(path: Path) -> bool:
    owner = owner_in(path.name)
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    return owner is not None and is_abandoned(owner, age=age)


def _decode(data: bytes, *, where: str) -> tuple[StoredPackage, ...]:
    hint = f"end the adapt command that wrote it, or remove {where} if there is none; then run the same command again"
    faults = Faults(where=where, authored=False)
    try:
        r = Reader(parse_json(data, where=where), faults)
    except InvalidFileError as error:
        raise InvalidFileError(f"a lease that cannot be read: {error.message}", where=where, hint=hint) from error
    newer = r.format_version("lease_version", supported=LEASE_VERSION)
    rows = r.raw("packages")
    r.finish_versioned(newer, LEASE_VERSION)
    faults.raise_if_any(hint=hint)
    return tuple(StoredPackage.from_data(row, where=where) for row in (rows if isinstance(rows, list) else ()))
