"""The content-addressed store of installed packages: blobs, manifests, and refs that hold them together.

    blobs/sha256/ab/abcd…      one payload file each, named by its content, read-only
    manifests/sha256/ab/abcd…  a package's own manifest, byte for byte as it was published
    refs/org/name/1.2.0/…      which manifest and which blobs make a package: the marker, written last

Several processes may write at once without a lock: a file's name is its content, so whoever renames last changes
nothing. A file that was verified carries VERIFIED_TIME as its modification time, so that a later look costs one `stat`;
one whose size or time differs is hashed again, and what turns out damaged is written anew.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adapterhub.documents import parse_json
from adapterhub.errors import IntegrityError, InvalidFileError
from adapterhub.files import link_or_copy, local_io, move_into, sync_folder, write_atomic
from adapterhub.processes import new_owner
from adapterhub.progress import Task
from adapterhub.spec._decode import Faults, Reader
from adapterhub.spec.digest import (
    CHUNK_BYTES,
    Digest,
    FileEntry,
    canonical_json,
    check_relative_path,
    digest_file,
)
from adapterhub.spec.manifest import MANIFEST_FILE
from adapterhub.spec.refs import PackageName, PackageRef, parse_version

REF_VERSION = "1.0"
# 1980-01-02: later than what zip archives can say, in whole even seconds for file systems that round, and no time at
# which anything was really written.
VERIFIED_TIME = 315_619_200 * 10**9
# What a sweep has put aside lies below it, each file under its path in the store (adapterhub/store/collect.py).
TRASH_FOLDER = "trash"
TEMPORARY_FOLDER = "tmp"
_READ_ONLY = 0o444
_LINKED_SUFFIX = ".safetensors"
_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPackage:
    """One package of the store: exact version, digest of its own manifest (None for a plain PEFT folder), payload."""

    ref: PackageRef
    manifest: Digest | None
    files: tuple[FileEntry, ...]

    @property
    def identity(self) -> Digest:
        """The manifest's digest; where there is none, that of the list of files."""
        if self.manifest is not None:
            return self.manifest
        return Digest.of(canonical_json([entry.to_data() for entry in sorted(self.files)]))

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "ref_version": REF_VERSION,
            "name": str(self.ref.name),
            "version": str(self.ref.version),
            "manifest": None if self.manifest is None else str(self.manifest),
            "files": [entry.to_data() for entry in sorted(self.files)],
        }

    @classmethod
    def from_data(cls, data: object, *, where: str) -> StoredPackage:
        """Build a stored package from plain JSON data.

        Raises:
            InvalidFileError: every fault found.
        """
        faults = Faults(where=where, authored=False)
        r = Reader(data, faults)
        newer = r.format_version("ref_version", supported=REF_VERSION)
        name, version = r.parse("name", PackageName.parse), r.parse("version", parse_version)
        manifest, files = r.optional_parse("manifest", Digest.parse), read_files(r)
        r.finish_versioned(newer, REF_VERSION)
        faults.raise_if_any()
        return cls(ref=PackageRef(name, version), manifest=manifest, files=files)


def read_files(reader: Reader, key: str = "files") -> tuple[FileEntry, ...]:
    """Read a list of file entries of a document, sorted."""
    entries = []
    for row in reader.mappings(key):
        path, size = row.parse("path", check_relative_path), row.integer("size")
        digest = row.parse("sha256", lambda text: Digest.parse(f"sha256:{text}"))
        row.finish()
        entries.append(FileEntry(path=path, size=size, digest=digest))
    return tuple(sorted(entries)) if reader.clean else ()


class Store:
    """The store below one folder (`settings.store`), which need not exist yet."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def blob_path(self, digest: Digest) -> Path:
        """Where a payload file lies, or would lie."""
        return self.root / "blobs" / "sha256" / digest.hex[:2] / digest.hex

    def manifest_path(self, digest: Digest) -> Path:
        """Where a manifest lies, or would lie."""
        return self.root / "manifests" / "sha256" / digest.hex[:2] / digest.hex

    def ref_path(self, ref: PackageRef, identity: Digest) -> Path:
        """Where a package's marker lies; two registries' different packages of one name do not touch each other."""
        org, name = ref.name.key.split("/")
        return self.root / "refs" / org / name / str(ref.version) / f"{identity.hex}.json"

    def has_blob(self, entry: FileEntry) -> bool:
        """Say whether a payload file is here and whole; hashed only if touched since it was verified."""
        path = self.blob_path(entry.digest)
        if not is_intact(path, entry) and not (self._brought_back(path) and is_intact(path, entry)):
            return False
        _stamp(path)
        return True

    def missing(self, files: tuple[FileEntry, ...]) -> tuple[FileEntry, ...]:
        """Return the payload files that are absent or damaged, each content once."""
        unique = {entry.digest: entry for entry in files}
        return tuple(sorted(entry for entry in unique.values() if not self.has_blob(entry)))

    def add_blob(
        self, source: BinaryIO, entry: FileEntry, *, where: str, hint: str | None = None, task: Task | None = None
    ) -> None:
        """Copy a stream into the store, hashing on the way; `where` names its source in errors, `hint` what to do.

        Raises:
            IntegrityError: the stream is not what `entry` says; nothing was kept. LocalIOError: the disk said no.
        """
        target = self.blob_path(entry.digest)
        with self._temporary(target) as temporary:
            with temporary.open("xb") as out:
                check_same(entry, *_copy(source, out, entry.size, task), where=where, hint=hint)
                out.flush()
                _stamp(temporary)
                os.fsync(out.fileno())
            _move_into_place(temporary, target)

    def adopt_blob(self, path: Path, entry: FileEntry) -> None:
        """Move a file of this store's file system into place as a blob; the caller has hashed it while it was written.

        Raises:
            IntegrityError: its size is not the entry's. LocalIOError: the disk said no.
        """
        target = self.blob_path(entry.digest)
        with local_io(target, "write into the store"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb+") as stream:
                check_same(entry, entry.digest, os.fstat(stream.fileno()).st_size, where=str(path))
                _stamp(path)
                os.fsync(stream.fileno())
            _move_into_place(path, target)

    def add_manifest(self, data: bytes) -> Digest:
        """Keep a package's own manifest, byte for byte; return its digest."""
        digest = Digest.of(data)
        if self.manifest_bytes(digest) is None:
            write_atomic(self.manifest_path(digest), data)
        return digest

    def manifest_bytes(self, digest: Digest) -> bytes | None:
        """Return a manifest's bytes; None if it is absent or damaged."""
        data = self._read(self.manifest_path(digest))
        return data if data is not None and Digest.of(data) == digest else None

    def add_ref(self, package: StoredPackage) -> None:
        """Write the marker that makes a package count; its manifest and blobs must be here.

        Raises:
            IntegrityError: one of them is not.
        """
        if package.manifest is not None and self.manifest_bytes(package.manifest) is None:
            raise IntegrityError("the manifest is not in the store", where=str(package.ref))
        if missing := self.missing(package.files):
            raise IntegrityError(f"{missing[0].path} is not in the store", where=str(package.ref))
        path, data = self.ref_path(package.ref, package.identity), canonical_json(package.to_data())
        if self._read(path) != data:
            write_atomic(path, data)

    def find(self, ref: PackageRef, identity: Digest) -> StoredPackage | None:
        """Return a package if its marker, its manifest and all its blobs are here and whole."""
        package = self.package_at(self.ref_path(ref, identity))
        if package is None or package.identity != identity or self.missing(package.files):
            return None
        if package.manifest is not None and self.manifest_bytes(package.manifest) is None:
            return None
        return package

    def holds(self, package: StoredPackage) -> bool:
        """Say whether this very package is here and whole; as `find`, without taking its marker apart."""
        if self._read(self.ref_path(package.ref, package.identity)) != canonical_json(package.to_data()):
            # written by another version of ours, or damaged
            return self.find(package.ref, package.identity) == package
        if self.missing(package.files):
            return False
        return package.manifest is None or self.manifest_bytes(package.manifest) is not None

    def packages(self) -> tuple[StoredPackage, ...]:
        """Return every package that has a readable marker, by name and version."""
        found = [self.package_at(path) for path in self.marker_paths()]
        return tuple(
            sorted((p for p in found if p is not None), key=lambda p: (p.ref.name.key, p.ref.version, p.identity))
        )

    def marker_paths(self) -> tuple[Path, ...]:
        """Return where every marker lies, readable or not."""
        return tuple(sorted(self.root.glob("refs/*/*/*/*.json")))

    def package_at(self, path: Path) -> StoredPackage | None:
        """Read a marker; one that a crash cut short counts as absent, and the next install writes it again."""
        data = self._read(path)
        if data is None:
            return None
        try:
            return StoredPackage.from_data(parse_json(data, where=str(path)), where=str(path))
        except InvalidFileError:
            return None

    def _put_file(self, entry: FileEntry, target: Path) -> None:
        blob = self.blob_path(entry.digest)
        with local_io(target, "install the file"):
            target.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(_ATTEMPTS):
                if not self.has_blob(entry):
                    break
                try:
                    if entry.path.endswith(_LINKED_SUFFIX):
                        if link_or_copy(blob, target) != "hardlink":
                            _stamp(target)
                    else:
                        shutil.copyfile(blob, target)
                except FileNotFoundError:  # a sweep put it aside this very moment: the next look brings it back
                    continue
                return
        raise IntegrityError(
            "the stored file is missing or damaged", where=str(blob), hint="run the same command again"
        )

    def _read(self, path: Path) -> bytes | None:
        """Return a small file of the store; None if there is none."""
        for _ in range(_ATTEMPTS):
            with local_io(path, "read the store"):
                try:
                    return path.read_bytes()
                except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                    pass
            if not self._brought_back(path):
                break
        return None

    def _brought_back(self, path: Path) -> bool:
        """Say whether a file that was missing is there by now: taken out of a sweep's trash, or put back by it."""
        for _ in range(_ATTEMPTS):
            try:
                owners = sorted((self.root / TRASH_FOLDER).iterdir())
            except OSError:
                owners = []
            for owner in owners:
                aside = owner / path.relative_to(self.root)
                # The sweep may be faster, and a store that may only be read stays as it is.
                with suppress(OSError):
                    if aside.is_file() and move_into(aside, path):
                        return True
            if os.path.lexists(path):
                return True
            if not owners:
                return False
        return False

    def put_files(self, package: StoredPackage, folder: Path) -> None:
        """Lay a package out as a folder that PEFT loads: weights linked, the rest copied, its manifest beside them.

        The folder is one that nobody looks at yet: what is written is not flushed to the disk (`files.sync_tree`).

        Raises:
            IntegrityError: the store lost a file. LocalIOError: the disk said no.
        """
        for entry in package.files:
            self._put_file(entry, folder / check_relative_path(entry.path))
        if package.manifest is not None:
            data = self.manifest_bytes(package.manifest)
            if data is None:
                raise IntegrityError("the stored manifest is missing or damaged", where=str(package.ref))
            with local_io(folder, "install the manifest"):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / MANIFEST_FILE).write_bytes(data)

    @contextmanager
    def _temporary(self, target: Path) -> Iterator[Path]:
        """Give a fresh name on the store's own file system, and leave nothing behind under it."""
        temporary = self.root / TEMPORARY_FOLDER / f"{target.name[:12]}.{new_owner()}"
        with local_io(target, "write into the store"):
            temporary.parent.mkdir(parents=True, exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)


def is_intact(path: Path, entry: FileEntry) -> bool:
    """Say whether a regular file is what its entry says; hashed only where its size fits and it bears no stamp."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    if not stat.S_ISREG(status.st_mode) or status.st_size != entry.size:
        return False
    if status.st_mtime_ns == VERIFIED_TIME:
        return True
    with local_io(path, "read the file"):
        try:
            return digest_file(path)[0] == entry.digest
        except FileNotFoundError:
            return False


def check_same(entry: FileEntry, digest: Digest, size: int, *, where: str, hint: str | None = None) -> None:
    """Compare what was read with what was promised.

    Raises:
        IntegrityError: it differs.
    """
    if size != entry.size:
        amount = "more than" if size > entry.size else f"{size} of"
        raise IntegrityError(f"holds {amount} the {entry.size} bytes that its manifest lists", where=where, hint=hint)
    if digest != entry.digest:
        raise IntegrityError(
            f"the bytes differ from the manifest's digest (sha256 {digest.short}…, not {entry.digest.short}…)",
            where=where,
            hint=hint,
        )


def _copy(source: BinaryIO, out: BinaryIO, limit: int, task: Task | None) -> tuple[Digest, int]:
    """Copy at most one chunk past `limit` bytes; return the digest and size of what was read."""
    state, size = hashlib.sha256(), 0
    while size <= limit and (chunk := source.read(CHUNK_BYTES)):
        out.write(chunk)
        state.update(chunk)
        size += len(chunk)
        if task is not None:
            task.advance(len(chunk))
    return Digest(state.hexdigest()), size


def _stamp(path: Path) -> None:
    """Mark a file as verified and read-only; where the system refuses, it is merely hashed again next time."""
    try:
        if path.stat().st_mtime_ns != VERIFIED_TIME:
            os.utime(path, ns=(VERIFIED_TIME, VERIFIED_TIME))
            path.chmod(_READ_ONLY)
    except OSError:
        return


def _move_into_place(temporary: Path, target: Path) -> None:
    """Rename over whatever is there; Windows refuses that for a read-only or open file."""
    try:
        temporary.replace(target)
    except FileNotFoundError:  # the folder was empty, and somebody tidied up
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(target)
    except PermissionError:
        target.chmod(0o644)
        temporary.replace(target)
    sync_folder(target.parent)
