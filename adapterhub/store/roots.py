"""The folders whose adapters.lock says what the store has to keep.

    roots/<sha256 of the real path>.json   a folder that has, or is about to have, an adapters.lock
    roots/<the same>.lock                  that lockfile as it was when it was last seen

A root's own lockfile counts while it can be reached. While it cannot (the disk is not mounted, or the folder may not be
read) the copy counts, so that adapters on a removable disk are not swept while it lies in a drawer. A folder that is
gone although the folder around it is there, on the file system on which it lay, was deleted: such a root is forgotten.
A folder without a lockfile holds nothing, and stays a root: its first lockfile may be about to be written.
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from adapterhub.documents import parse_json
from adapterhub.errors import InvalidFileError, LocalIOError
from adapterhub.files import local_io, write_atomic
from adapterhub.spec._decode import Faults, Reader
from adapterhub.spec.digest import canonical_json
from adapterhub.spec.lockfile import LOCK_FILE, LockedPackage, Lockfile
from adapterhub.store.content import Store, StoredPackage
from adapterhub.store.leases import is_read_only

ROOT_VERSION = "1.0"


class RootState(Enum):
    """PRESENT: the folder is there. AWAY: it cannot be reached at the moment. GONE: it was deleted."""

    PRESENT = "present"
    AWAY = "away"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Root:
    """One folder that the store knows to have a lockfile.

    path: the file that remembers it. device: the file system's number when it was remembered.
    """

    folder: Path
    path: Path
    device: int | None = None

    @property
    def copy(self) -> Path:
        """Where the copy of its lockfile lies."""
        return self.path.with_suffix(".lock")

    @property
    def state(self) -> RootState:
        """Whether the folder can be reached now."""
        try:
            there = self.folder.is_dir()
            device = (self.folder if there else self.folder.parent).stat().st_dev
            if there and not os.access(self.folder, os.R_OK | os.X_OK):
                return RootState.AWAY
            if there and (self.folder / LOCK_FILE).exists():
                return RootState.PRESENT
        except OSError:
            return RootState.AWAY
        if self.device not in (None, device):  # an empty mount point, or one above it
            return RootState.AWAY
        return RootState.PRESENT if there else RootState.GONE


def add_root(store: Store, folder: Path) -> bool:
    """Remember a folder, and its lockfile as it is now; return False where the store may only be read.

    Call it before the folder's lockfile is written and again after; where nothing changed it writes nothing.

    Raises:
        LocalIOError: the disk said no.
    """
    real = os.path.realpath(folder)
    path = store.root / "roots" / f"{hashlib.sha256(os.fsencode(real)).hexdigest()}.json"
    with local_io(folder, "read the folder"):
        place = next(place for place in (Path(real), *Path(real).parents) if place.exists())
        device = place.stat().st_dev
    data = {"root_version": ROOT_VERSION, "folder": _as_text(real), "device": device}
    try:
        _write_if_other(path, canonical_json(data))
        keep_copy(Root(folder=Path(real), path=path, device=device))
    except LocalIOError as error:
        if not is_read_only(error):
            raise
        return False
    return True


def keep_copy(root: Root) -> None:
    """Copy a root's lockfile beside its record where it differs from the copy; an absent lockfile takes the copy away.

    Raises:
        LocalIOError: the disk said no.
    """
    lock = root.folder / LOCK_FILE
    with local_io(lock, "read the lockfile"):
        try:
            data = lock.read_bytes()
        except FileNotFoundError:
            root.copy.unlink(missing_ok=True)
            return
    _write_if_other(root.copy, data)


def roots(store: Store) -> tuple[Root, ...]:
    """Return every folder that is remembered, by path.

    Raises:
        InvalidFileError: a record cannot be read, so nobody can say what it holds. LocalIOError.
    """
    folder = store.root / "roots"
    with local_io(folder, "read the roots"):
        try:
            names = [path.name for path in folder.iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return ()
        found = []
        for name in names:
            if name.endswith(".json") and not name.startswith("."):
                with suppress(FileNotFoundError):  # forgotten by another process since
                    found.append(_decode((folder / name).read_bytes(), folder / name))
    return tuple(sorted(found, key=lambda root: root.folder))


def packages_of(root: Root) -> tuple[StoredPackage, ...]:
    """Return the packages that a root's lockfile names, or its copy while the folder is away.

    Raises:
        InvalidFileError: the lockfile is broken, or from the future. LocalIOError: it is away, and there is no copy.
    """
    state = root.state
    if state is RootState.GONE:
        return ()
    path = root.folder / LOCK_FILE if state is RootState.PRESENT else root.copy
    with local_io(path, "read the lockfile"):
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            if state is RootState.PRESENT:
                return ()
            raise LocalIOError(
                "cannot be reached, and nobody knows which adapters it uses",
                where=str(root.folder),
                hint=f"mount its disk; if you will never use it again, remove {root.path}",
            ) from error
    return locked_packages(Lockfile.from_data(_parse(data, path), where=str(path)))


def locked_packages(lock: Lockfile) -> tuple[StoredPackage, ...]:
    """Return the packages of a lockfile as the store names them."""
    return tuple(stored_of(entry) for entry in lock.entries)


def stored_of(entry: LockedPackage) -> StoredPackage:
    """Return a locked package as the store names it."""
    return StoredPackage(ref=entry.ref, manifest=entry.manifest, files=entry.files)


def forget(root: Root) -> None:
    """Remove what is remembered of a folder, unless it is back."""
    if root.state is RootState.GONE:
        with local_io(root.path, "forget the folder"):
            root.path.unlink(missing_ok=True)
            root.copy.unlink(missing_ok=True)


def _as_text(path: str) -> str:
    """Return a path as JSON can hold it: as it is, or as hex where it is no text (a POSIX path is any bytes)."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return f"hex:{os.fsencode(path).hex()}"
    return path


def _as_path(text: str) -> Path:
    return Path(os.fsdecode(bytes.fromhex(text[4:])) if text.startswith("hex:") else text)


def _write_if_other(path: Path, data: bytes) -> None:
    with local_io(path, "write into the store"):
        try:
            if path.read_bytes() == data:
                return
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                raise
    write_atomic(path, data)


def _parse(data: bytes, path: Path) -> object:
    try:
        return parse_json(data, where=str(path))
    except InvalidFileError as error:
        hint = "bring the lockfile back (from version control, or by `adapt lock` there), then run the same command"
        raise InvalidFileError(error.message, where=str(path), hint=hint) from error


def _decode(data: bytes, path: Path) -> Root:
    hint = f"remove {path}, then run any `adapt install` or `adapt sync` in the folder it stands for"
    try:
        value = parse_json(data, where=str(path))
    except InvalidFileError as error:
        raise InvalidFileError(f"a root that cannot be read: {error.message}", where=str(path), hint=hint) from error
    faults = Faults(where=str(path), authored=False)
    r = Reader(value, faults)
    newer = r.format_version("root_version", supported=ROOT_VERSION)
    folder, device = r.parse("folder", _as_path), r.optional_integer("device")
    r.finish_versioned(newer, ROOT_VERSION)
    faults.raise_if_any(hint=hint)
    return Root(folder=folder, path=path, device=device)
