"""Writing files so that a crash at any moment leaves the old bytes or the new ones, never a mixture."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adapterhub.errors import AdapterHubError, LocalIOError


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
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_sibling(path)
        try:
            with temporary.open("xb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a temporary folder beside `target`; it takes the target's name only when the block ends well.

    An existing non-empty target is refused before anything is written.

    Raises:
        LocalIOError: the target exists and is not an empty folder, or the disk said no.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
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
            if target.exists():
                target.rmdir()
            temporary.rename(target)
            sync_folder(target.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder` to the disk."""
    for root, _, names in os.walk(folder):
        for name in names:
            path = Path(root) / name
            if path.is_symlink():
                continue
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        sync_folder(Path(root))


def link_or_copy(source: Path, target: Path) -> str:
    """Put `source` at `target` by hard link, else by copy; return which it was (`hardlink` or `copy`)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        return "copy"
    return "hardlink"
