"""What an interrupted download left of a file, kept so that the next one goes on where it stopped.

    partials/<sha256>.part             nobody's: whoever renames it first may go on with it
    partials/<sha256>.<owner>.part     being written by a process (`processes.new_owner`), or left by one that died

There is no lock: a part is claimed by renaming it, which succeeds for one process only. Nothing in a part is believed:
it is hashed again before it is continued, and what is whole in the end is compared with the digest it was wanted for.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from adapterhub.files import local_io
from adapterhub.processes import may_be_alive, new_owner, owner_in
from adapterhub.spec.digest import CHUNK_BYTES, Digest, FileEntry
from adapterhub.store.content import Store

SUFFIX = ".part"
ABANDONED_SECONDS = 86_400.0
"""A part that no process was seen to write for this long is nobody's: of another machine, or of a former boot."""


class Partial:
    """The beginning of a file that is being downloaded: `size` bytes, hashed as they are written."""

    def __init__(self, path: Path, stream: BinaryIO, entry: FileEntry) -> None:
        self.path = path
        self.entry = entry
        self.size = 0
        self._stream = stream
        self._state = hashlib.sha256()

    @property
    def digest(self) -> Digest:
        """The digest of what is there."""
        return Digest(self._state.hexdigest())

    @property
    def is_whole(self) -> bool:
        """Whether what is there is the file that is wanted."""
        return self.size == self.entry.size and self.digest == self.entry.digest

    def write(self, data: bytes) -> None:
        """Append.

        Raises:
            LocalIOError: the disk said no.
        """
        with local_io(self.path, "write into the store"):
            # Unbuffered, so that a killed process leaves all it received; a full disk may take a part of the bytes.
            view = memoryview(data)
            while view:
                view = view[self._stream.write(view) :]
        self._state.update(data)
        self.size += len(data)

    def discard(self) -> None:
        """Begin anew."""
        with local_io(self.path, "write into the store"):
            self._stream.seek(0)
            self._stream.truncate()
        self._state = hashlib.sha256()
        self.size = 0

    def close(self) -> None:
        """Close the file, so that it can be moved on any system; nothing can be written any more."""
        self._stream.close()

    def read_again(self) -> None:
        """Hash what a former download left; what cannot be the beginning of the file is discarded."""
        with local_io(self.path, "read the store"):
            self._stream.seek(0)
            while self.size <= self.entry.size and (chunk := self._stream.read(CHUNK_BYTES)):
                self._state.update(chunk)
                self.size += len(chunk)
        if self.size > self.entry.size or (self.size == self.entry.size and not self.is_whole):
            self.discard()


@contextmanager
def open_partial(store: Store, entry: FileEntry) -> Iterator[Partial]:
    """Go on with what is kept of a file, or begin it; what the block leaves unfinished is kept for the next download.

    A part that `store.adopt_blob` took is gone from here; an empty one is not kept.

    Raises:
        LocalIOError: the disk said no.
    """
    folder = folder_of(store)
    own = folder / f"{entry.digest.hex}.{new_owner()}{SUFFIX}"
    with local_io(own, "write into the store"):
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder, entry, own)
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        stream = os.fdopen(os.open(own, flags, 0o644), "rb+", buffering=0)
    partial = Partial(own, stream, entry)
    try:
        partial.read_again()
        yield partial
    finally:
        partial.close()
        _release(folder, entry, own)


def folder_of(store: Store) -> Path:
    """The folder that the parts lie in."""
    return store.root / "partials"


def _claim(folder: Path, entry: FileEntry, own: Path) -> None:
    """Rename the longest part that is nobody's, or a dead process's, to a name of our own; drop the shorter ones."""
    found = []
    for path in folder.glob(f"{entry.digest.hex}*{SUFFIX}"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            if _is_free(path, status.st_mtime):
                found.append((stat.S_ISREG(status.st_mode), status.st_size, path))
    claimed = False
    for regular, _, path in sorted(found, reverse=True):
        with contextlib.suppress(OSError):
            if claimed or not regular:
                path.unlink()
            else:
                # Two processes may be here at once: the rename fails for the second.
                path.rename(own)
                claimed = True


def _is_free(path: Path, written: float) -> bool:
    """Say whether nobody writes a part: it has no owner, a dead one, or one elsewhere that fell silent for a day."""
    owner = owner_in(path.name)
    return owner is None or not may_be_alive(owner) or time.time() - written > ABANDONED_SECONDS


def _release(folder: Path, entry: FileEntry, own: Path) -> None:
    """Give a part up for others, unless a longer one lies there or there is nothing to keep."""
    free = folder / f"{entry.digest.hex}{SUFFIX}"
    with contextlib.suppress(OSError):
        size = own.stat().st_size
        if size == 0 or (free.is_file() and free.stat().st_size > size):
            own.unlink()
        else:
            own.replace(free)
