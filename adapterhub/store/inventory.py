"""What lies in a store, file by file, whether it belongs to a package or was left behind."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from adapterhub.errors import LocalIOError
from adapterhub.processes import is_abandoned, is_running, owner_in
from adapterhub.spec.digest import Digest
from adapterhub.store.content import TEMPORARY_FOLDER, TRASH_FOLDER, Store

# A name of files.temporary_sibling or of an older adapterhub's temporary file; the number is the process's.
_NUMBERED = re.compile(r"\.(?P<pid>[0-9]{1,10})-[0-9a-f]{8}(?:\.tmp)?")
_HEX = re.compile(r"[0-9a-f]{64}")


class Kind(Enum):
    """What a file of the store is; the value is the word that people read."""

    BLOB = "blob"
    MANIFEST = "manifest"
    MARKER = "marker"
    PARTIAL = "partial"
    TEMPORARY = "temporary"
    TRASH = "trash"
    LEASE = "lease"
    ROOT = "root"
    UNKNOWN = "unknown"


# The folder decides what a file is; a hidden name in any of them is a temporary one.
_FOLDERS = {
    "blobs": Kind.BLOB,
    "manifests": Kind.MANIFEST,
    "refs": Kind.MARKER,
    "partials": Kind.PARTIAL,
    TEMPORARY_FOLDER: Kind.TEMPORARY,
    TRASH_FOLDER: Kind.TRASH,
    "leases": Kind.LEASE,
    "roots": Kind.ROOT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One file of the store.

    size: in bytes. touched: when its content, name or number of links changed last, in seconds since 1970. links: how
    many names its bytes have; with more than one, removing this one frees nothing.
    """

    kind: Kind
    path: Path
    size: int
    touched: float
    links: int = 1

    @property
    def frees(self) -> int:
        """How many bytes its removal gives back."""
        return self.size if self.links <= 1 else 0

    @property
    def digest(self) -> Digest | None:
        """The digest that a blob's, a manifest's or a partial download's name holds."""
        name = self.path.name.partition(".")[0]
        return Digest(name) if _HEX.fullmatch(name) else None


def inventory(store: Store) -> Iterator[Item]:
    """Walk over every file of a store; what vanishes meanwhile is passed over.

    Raises:
        LocalIOError: a folder cannot be read.
    """
    for name, kind in _FOLDERS.items():
        for root, folders, files in os.walk(store.root / name, onerror=_refuse):
            folders.sort()
            for file in sorted(files):
                if (item := item_at(Path(root) / file, kind)) is not None:
                    yield item


def item_at(path: Path, kind: Kind) -> Item | None:
    """Look at one file; None where there is none."""
    try:
        status = path.lstat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        kind = Kind.UNKNOWN
    elif path.name.startswith(".") and kind is not Kind.TRASH:
        kind = Kind.TEMPORARY
    item = Item(kind=kind, path=path, size=status.st_size, touched=status.st_ctime, links=status.st_nlink)
    nameless = kind in (Kind.BLOB, Kind.MANIFEST, Kind.PARTIAL) and item.digest is None
    if nameless or (kind is Kind.MARKER and path.suffix != ".json"):
        return replace(item, kind=Kind.UNKNOWN)
    return item


def is_left_behind(name: str, *, age: float) -> bool:
    """Say whether the process that gave a temporary file or folder its name is gone; `age` is in seconds.

    A name that tells no process counts as left behind.
    """
    if (owner := owner_in(name)) is not None:
        return is_abandoned(owner, age=age)
    numbered = _NUMBERED.search(name)
    return numbered is None or not is_running(int(numbered["pid"]))


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise LocalIOError(f"cannot read the store: {error.strerror}", where=str(error.filename)) from error
