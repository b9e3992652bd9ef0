"""The form in which packages travel to a machine without a network: a folder, or the same as one tar archive.

    adapters.lock                            every package that travels, with the digest of each file
    adapters.yaml                            what asks for them
    registry/<org>/<name>/<version>/…        manifest and payload, laid out as registry/directory.py reads it
    registry/<org>/<name>/…                  a plain PEFT adapter, which has no manifest of its own

The lock is the list: what it does not name is not read, and what it names is compared with it byte for byte. Nothing of
an archive is ever extracted to a path of its own choosing; its members are streams that the store reads.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, BinaryIO, Protocol, cast

from adapterhub.errors import IntegrityError, LocalIOError, UnsatisfiedError
from adapterhub.files import local_io
from adapterhub.registry.directory import open_inside
from adapterhub.spec.digest import CHUNK_BYTES, check_relative_path, colliding_paths
from adapterhub.spec.lockfile import LockedPackage

REGISTRY_FOLDER = "registry"
TAR_SUFFIX = ".tar"
MAX_MEMBERS = 2500
# Headers are read into memory, whatever length they claim, and some are slow to read: no honest one is longer than the
# first, nor are all together longer than the second (three blocks a member, where each has a long name).
_MAX_READ = 4 * CHUNK_BYTES
_MAX_HEADERS = 4 * CHUNK_BYTES
_HINT = "have it exported and carried over again: adapt export"


def package_folder(entry: LockedPackage) -> str:
    """Return where a package lies in a bundle; one with a derived manifest lies in its name's own folder."""
    folder = f"{REGISTRY_FOLDER}/{entry.name}"
    return folder if entry.manifest is None else f"{folder}/{entry.version}"


class Bundle(Protocol):
    """A bundle that is being read."""

    @property
    def where(self) -> str:
        """Its path, for errors."""
        ...

    def size(self, name: str) -> int | None:
        """Return the size of one of its files; None if there is none.

        Raises:
            InvalidFileError: a link or something else than a file lies there.
        """
        ...

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        """Open one of its files."""
        ...


def read_member(bundle: Bundle, name: str, *, limit: int) -> bytes | None:
    """Read a small file of a bundle; None if there is none.

    Raises:
        IntegrityError: it is larger than `limit` bytes, or the bundle is malformed.
    """
    size = bundle.size(name)
    if size is None:
        return None
    if size > limit:
        raise IntegrityError(f"holds {size} bytes, and may hold {limit}", where=f"{bundle.where}: {name}", hint=_HINT)
    pieces = []
    with bundle.open(name) as stream:
        while size > 0 and (piece := stream.read(min(size, CHUNK_BYTES))):
            pieces.append(piece)
            size -= len(piece)
    return b"".join(pieces)


@contextmanager
def open_bundle(path: Path) -> Iterator[Bundle]:
    """Open a folder or an archive that `adapt export` wrote, its archive's members checked.

    Raises:
        UnsatisfiedError: there is none. IntegrityError: the archive is malformed, or holds what no bundle holds.
    """
    if path.is_dir():
        yield _Folder(path)
        return
    if not path.is_file():
        raise UnsatisfiedError("there is no such folder or archive", where=str(path), hint="check the path")
    with local_io(path, "read the archive"), path.open("rb") as raw:
        guarded = _Guarded(raw, str(path))
        try:
            # Plain only: a compressed archive can hold a thousand times what it weighs, and weights do not shrink.
            tar = tarfile.open(fileobj=cast("IO[bytes]", guarded), mode="r:")  # noqa: SIM115  # it holds nothing open
            archive = _Archive(tar, str(path))
        except (tarfile.TarError, EOFError, ValueError, OverflowError, RecursionError) as error:
            # RecursionError: tarfile goes one call deeper for each long name that follows on a long name.
            raise _malformed(path, str(error) or "it ends too early") from error
        guarded.in_headers = False
        try:
            yield archive
        except (tarfile.TarError, EOFError) as error:
            raise _malformed(path, str(error) or "it ends too early") from error


def _malformed(path: Path | str, why: str) -> IntegrityError:
    hint = _HINT
    if str(path).endswith((".gz", ".tgz", ".xz", ".bz2", ".zst", ".zip")):
        hint = "unpack the compression first: adapt import takes a plain .tar or a folder"
    return IntegrityError(f"is no archive that adapt export wrote: {why}", where=str(path), hint=hint)


class _Folder:
    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def where(self) -> str:
        return str(self._root)

    def size(self, name: str) -> int | None:
        if not os.path.lexists(self._root / name):
            return None
        with open_inside(self._root, name) as stream:
            return os.fstat(stream.fileno()).st_size

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        return open_inside(self._root, name)


class _Archive:
    """The files of an archive by name; every member was looked at before the first one is read."""

    def __init__(self, tar: tarfile.TarFile, where: str) -> None:
        self._tar = tar
        self._where = where
        self._members = MappingProxyType(_checked(tar, where))

    @property
    def where(self) -> str:
        return self._where

    def size(self, name: str) -> int | None:
        member = self._members.get(name)
        return None if member is None else member.size

    def open(self, name: str) -> AbstractContextManager[BinaryIO]:
        stream = self._tar.extractfile(self._members[name])
        assert stream is not None  # only regular files are kept in _members
        return cast("AbstractContextManager[BinaryIO]", stream)


def _checked(tar: tarfile.TarFile, where: str) -> dict[str, tarfile.TarInfo]:
    """Return the regular files of an archive.

    Raises:
        IntegrityError: a member is no file or folder, or comes twice. ValueError: it has an unsafe name.
        tarfile.TarError, EOFError, OverflowError, RecursionError: what tarfile makes of a malformed header.
    """
    files: dict[str, tarfile.TarInfo] = {}
    names: list[str] = []
    for number, member in enumerate(_members(tar, where)):
        if number >= MAX_MEMBERS:
            raise _malformed(where, f"it holds more than {MAX_MEMBERS} members")
        name = member.name.removeprefix("./").rstrip("/")
        if member.isdir() and name in ("", "."):  # what `tar -c .` writes first
            continue
        check_relative_path(name)
        if member.isdir():
            continue
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse() or member.size < 0:
            raise _malformed(where, f"{name!r} is a link, a device or something else that is no plain file")
        names.append(name)
        files[name] = member
    for first, second in colliding_paths(names):
        raise _malformed(where, f"{first!r} and {second!r} are one file on some file systems")
    return files


def _members(tar: tarfile.TarFile, where: str) -> Iterator[tarfile.TarInfo]:
    """Walk over the members; each lies behind the last one, so that the walk ends (CVE-2025-8194)."""
    end = -1
    while (member := tar.next()) is not None:
        if member.offset_data <= end or member.offset < end:
            raise _malformed(where, "its members overlap")
        end = member.offset_data
        yield member


class _Guarded:
    """A file that refuses to be read in pieces that no honest archive asks for.

    in_headers: the headers are being read, of which there may be so many bytes and no more.
    """

    def __init__(self, raw: BinaryIO, where: str) -> None:
        self._raw = raw
        self._where = where
        self._left = _MAX_HEADERS
        self.in_headers = True

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _MAX_READ:
            raise _malformed(self._where, "a header in it is too long")
        if self.in_headers:
            self._left -= size
            if self._left < 0:
                raise _malformed(self._where, "its headers are too long")
        return self._raw.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        return self._raw.tell()

    def close(self) -> None:
        """Leave the file open: whoever opened it closes it."""


class Writer(Protocol):
    """A bundle that is being written; files come in the order of their names."""

    def add(self, name: str, source: BinaryIO, size: int) -> None:
        """Copy exactly `size` bytes of a stream to a file.

        Raises:
            LocalIOError: the stream is shorter, or the disk said no.
        """
        ...


class FolderWriter:
    """Writes below a folder of our own."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def add(self, name: str, source: BinaryIO, size: int) -> None:
        """Copy a stream to a new file."""
        target = self._root / check_relative_path(name)
        with local_io(target, "write the file"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as out:
                while size > 0:
                    piece = source.read(min(size, CHUNK_BYTES))
                    if not piece:
                        raise LocalIOError("the stored file ended too early", where=str(target))
                    out.write(piece)
                    size -= len(piece)


class TarWriter:
    """Writes an archive whose bytes depend on its files alone: no times, no owners, one mode."""

    def __init__(self, out: BinaryIO, where: str) -> None:
        # GNU's format holds any size and any length of name without a further header for usual ones.
        self._tar = tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115  # closed by close()
        self._where = where

    def add(self, name: str, source: BinaryIO, size: int) -> None:
        """Copy a stream to a new member."""
        member = tarfile.TarInfo(check_relative_path(name))
        member.size, member.mode, member.mtime = size, 0o644, 0
        try:
            self._tar.addfile(member, source)
        except OSError as error:
            raise LocalIOError(f"cannot write the archive: {error.strerror or error}", where=self._where) from error

    def close(self) -> None:
        """Write the end of the archive."""
        with local_io(Path(self._where), "write the archive"):
            self._tar.close()
