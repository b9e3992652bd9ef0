"""Writing files so that a crash at any moment leaves the old bytes or the new ones, never a mixture."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from adapterhub.errors import AdapterHubError, LocalIOError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LINK_KINDS = ("reflink", "hardlink", "copy")
_FICLONE = 0x40049409
# What a file system, or two of them, answer to a kind of link they do not know.
_CANNOT = frozenset(
    (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EACCES)
)
# What making a folder and then using it answers when the folder is taken away in between.
_VANISHED = (FileNotFoundError, FileExistsError)
_ATTEMPTS = 50
_REFUSED: dict[tuple[int, int], set[str]] = {}


@contextmanager
def local_io(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError into a LocalIOError that says what was being done to which path."""
    try:
        yield
    except AdapterHubError:
        raise
    except OSError as error:
        raise LocalIOError(f"cannot {doing}: {error.strerror or error}", where=str(path), hint=_hint(error)) from error


def _hint(error: OSError) -> str | None:
    hints = {
        errno.ENOSPC: "free some space on this disk, then run the same command again",
        errno.EDQUOT: "your disk quota is used up: free some space, then run the same command again",
        errno.EROFS: "this file system is read-only: choose another folder",
        errno.EACCES: "you may not write there: choose another folder, or set ADAPTERHUB_HOME",
        errno.EPERM: "you may not write there: choose another folder, or set ADAPTERHUB_HOME",
    }
    return hints.get(error.errno or 0)


def sync_folder(folder: Path) -> None:
    """Make a rename inside a folder durable; a no-op where folders cannot be synced (Windows)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def temporary_sibling(path: Path) -> Path:
    """Return a fresh hidden name beside `path`, on the same file system."""
    return path.with_name(f".{path.name[:200]}.{os.getpid()}-{os.urandom(4).hex()}.tmp")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file by temp file, fsync and rename.

    Raises:
        LocalIOError: the disk said no; the old file, if any, is whole.
    """
    with local_io(path, "write the file"):
        temporary = temporary_sibling(path)
        try:
            with _opened_new(temporary) as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _opened_new(path: Path) -> BinaryIO:
    """Create a file, and the folders above it; another process may be taking empty folders away meanwhile."""
    for _ in range(_ATTEMPTS):
        with suppress(*_VANISHED):
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("xb")
    return path.open("xb")


def move_into(source: Path, target: Path) -> bool:
    """Rename a file to a place whose folders may have to be made; return False if there is no such file any more.

    Raises:
        OSError: the disk said no.
    """
    for _ in range(_ATTEMPTS):  # another process may be taking empty folders away meanwhile
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            source.replace(target)
        except _VANISHED:
            if not os.path.lexists(source):
                return False
        else:
            return True
    source.replace(target)
    return True


@contextmanager
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a temporary folder beside `target`; it takes the target's name only when the block ends well.

    An existing non-empty target is refused before anything is written; with `replace` it makes way, and is deleted only
    when the new folder has its name.

    Raises:
        LocalIOError: the target exists and is not an empty folder, or the disk said no.
    """
    if not replace and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise LocalIOError(
            "already exists and is not empty", where=str(target), hint="choose another folder, or remove it"
        )
    with local_io(target, "create the folder"):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_sibling(target)
        temporary.mkdir()
    try:
        yield temporary
        with local_io(target, "create the folder"):
            sync_tree(temporary)
            if replace and target.is_dir():
                _take_place(temporary, target)
            else:
                if target.exists():
                    target.rmdir()
                temporary.rename(target)
            sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _take_place(temporary: Path, target: Path) -> None:
    """Give a folder the name of another, which is deleted then: in one step where the system exchanges names.

    Elsewhere there is a moment in which neither has the name; the old folder then has a hidden one, and gets its own
    back if the new one cannot take it.
    """
    if _exchanged(temporary, target):
        shutil.rmtree(temporary, ignore_errors=True)
        return
    old = temporary.with_suffix(".old")
    target.rename(old)
    try:
        temporary.rename(target)
    except BaseException:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchanged(first: Path, second: Path) -> bool:
    """Exchange two names at once (renameat2 of Linux 3.15 and glibc 2.28); return False where that cannot be done."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    here, exchange = -100, 2  # AT_FDCWD of fcntl.h, RENAME_EXCHANGE of linux/fs.h
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(rename(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0)


def sync_tree(folder: Path, *, but_hard_links: bool = False) -> None:
    """Flush every file and folder below `folder` to the disk; files with several names only where that is wanted."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            status = path.lstat()
            if stat.S_ISLNK(status.st_mode) or (but_hard_links and status.st_nlink > 1):
                continue
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(root))


def link_or_copy(source: Path, target: Path) -> str:
    """Put `source` at the free path `target` by the first of LINK_KINDS that works there; return which it was.

    Which kinds the two file systems refuse is found out once in a process. A symbolic link is not among them: it would
    break when either side moves, and lead a write to the folder into the file that it points to.

    Raises:
        OSError: the disk said no.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    refused = _REFUSED.setdefault((source.stat().st_dev, target.parent.stat().st_dev), set())
    for kind, link in (("reflink", _reflink), ("hardlink", os.link)):
        if kind in refused:
            continue
        try:
            link(source, target)
        except OSError as error:
            if error.errno in _CANNOT:
                refused.add(kind)
            elif error.errno != errno.EMLINK:  # one file may have its fill of links where others have not
                raise
        else:
            return kind
    shutil.copyfile(source, target)
    return "copy"


def _reflink(source: Path, target: Path) -> None:
    """Make a file that shares the other's blocks until one of them is written to (FICLONE of linux/fs.h)."""
    if fcntl is None or not sys.platform.startswith("linux"):
        raise OSError(errno.ENOTSUP, "no reflinks on this system")
    with source.open("rb") as origin, target.open("xb") as copy:
        try:
            fcntl.ioctl(copy.fileno(), _FICLONE, origin.fileno())
        except OSError:
            target.unlink()
            raise
