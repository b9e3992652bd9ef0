"""One commit of a Hub repository read as a package, by kilobytes: what it lists, what it says, what it holds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial

from packaging.version import Version

from adapterhub.catalog.checks import CHECKS
from adapterhub.documents import MAX_JSON_BYTES, parse_json
from adapterhub.errors import AdapterHubError, IntegrityError, InvalidFileError, UnsatisfiedError
from adapterhub.package import (
    PAYLOAD_FILES,
    PICKLED_WEIGHTS,
    derive_from,
    refuse_pickle_name,
)
from adapterhub.registry._hub_client import HubClient, RemoteFile
from adapterhub.registry._hub_download import DAMAGED, Source, read_remote_header
from adapterhub.registry._hub_together import together
from adapterhub.registry.base import Description
from adapterhub.spec._decode import freeze
from adapterhub.spec.digest import Digest, FileEntry
from adapterhub.spec.manifest import CONFIG_FILE, DERIVED_VERSION, MANIFEST_FILE, WEIGHTS_FILE, Manifest
from adapterhub.spec.refs import PackageName, PackageRef
from adapterhub.store import check_same
from adapterhub.weights import Header

# The Hub keeps larger files by LFS, whose digest its listing tells.
_MAX_PLAIN_BYTES = 32 << 20
_COMMIT_DIGITS = 12


class Snapshot:
    """A commit of a repository: its list of files, and those of its small files that were read, each once."""

    def __init__(self, client: HubClient, name: PackageName, commit: str) -> None:
        self.client, self.name, self.commit = client, name, commit
        self._files: dict[str, RemoteFile] | None = None
        self._read: dict[str, bytes] = {}
        self._headers: dict[str, Header] = {}
        self._failed: dict[str, AdapterHubError] = {}

    @property
    def files(self) -> Mapping[str, RemoteFile]:
        """The files by path."""
        if self._files is None:
            self._files = {file.path: file for file in self.client.tree(str(self.name), self.commit)}
        return self._files

    def where(self, path: str) -> str:
        """How errors call a file."""
        return f"{self.name}: {path}"

    def source(self, entry: FileEntry) -> Source:
        """Where a file is downloaded from."""
        url = self.client.file_url(str(self.name), self.commit, entry.path)
        return Source(entry=entry, url=url, where=self.where(entry.path))

    def look_ahead(self, *paths: str) -> None:
        """Read what a description needs, and other small files, at a time; what fails is raised where it is used."""
        small = {MANIFEST_FILE, CONFIG_FILE, *paths} & self.files.keys() - self._read.keys()
        calls = [partial(self._try, path, self.read) for path in sorted(small)]
        if WEIGHTS_FILE in self.files and WEIGHTS_FILE not in self._headers:
            calls.append(partial(self._try, WEIGHTS_FILE, self.header))
        together(calls)

    def _try(self, path: str, look: Callable[[str], object]) -> None:
        try:
            look(path)
        except AdapterHubError as error:
            self._failed[path] = error

    def _raise_failed(self, path: str) -> None:
        if (failure := self._failed.pop(path, None)) is not None:
            raise failure

    def header(self, path: str) -> Header:
        """Return the header of a file of weights, read by ranges and once.

        Raises:
            InvalidFileError: it is a pickle, zip or GGUF. IntegrityError: the header is malformed.
        """
        self._raise_failed(path)
        if path not in self._headers:
            # Only a place and a size: the digest is not looked at, and unknown where LFS does not keep the file.
            file = self.files[path]
            entry = FileEntry(path=path, size=file.size, digest=file.sha256 or Digest("0" * 64))
            self._headers[path] = read_remote_header(self.client, self.source(entry))
        return self._headers[path]

    def known(self, entry: FileEntry) -> bytes | None:
        """Return a file's bytes if they were read already and are what the entry says."""
        data = self._read.get(entry.path)
        return data if data is not None and Digest.of(data) == entry.digest else None

    def read(self, path: str, *, limit: int = MAX_JSON_BYTES) -> bytes | None:
        """Return a small file, compared with the listing's size and digest; None if there is none.

        Raises:
            InvalidFileError: it is larger than `limit` bytes. IntegrityError: other bytes came, twice.
        """
        self._raise_failed(path)
        file = self.files.get(path)
        if file is None or path in self._read:
            return self._read.get(path)
        if file.size > limit:
            raise InvalidFileError(f"has more than {limit:,} bytes", where=self.where(path))
        for _ in range(2):
            data = self.client.read(str(self.name), self.commit, path, file.size)
            if data is not None and _is_same(data, file):
                self._read[path] = data
                return data
        raise IntegrityError("what came is not what the Hub lists", where=self.where(path), hint=DAMAGED)


def derived_version(commit: str) -> Version:
    """Return the version of a commit that has no manifest."""
    return Version(f"{DERIVED_VERSION}+g{commit[:_COMMIT_DIGITS]}")


def describe_snapshot(snapshot: Snapshot, version: Version | None, *, notes: tuple[str, ...] = ()) -> Description:
    """Describe the package of a commit; `version` is the one it must be, None for whichever it says.

    Raises:
        UnsatisfiedError: there is neither a manifest nor an adapter. IntegrityError: the copy is damaged.
        InvalidFileError: the manifest is none that can be read, or the package holds what none may hold.
    """
    snapshot.look_ahead()
    data = snapshot.read(MANIFEST_FILE)
    if data is None:
        return _describe_plain(snapshot, version, notes)
    manifest = _manifest(data, snapshot.where(MANIFEST_FILE))
    if version is not None and manifest.version != version:
        raise IntegrityError(
            f"the manifest says version {manifest.version}", where=snapshot.where(MANIFEST_FILE), hint=DAMAGED
        )
    header = _check_payload(snapshot, manifest)
    config: dict[str, object] = {}
    for entry in manifest.files:
        if entry.path == CONFIG_FILE:
            config_bytes = snapshot.read(CONFIG_FILE) or b""
            where = snapshot.where(CONFIG_FILE)
            check_same(entry, Digest.of(config_bytes), len(config_bytes), where=where, hint=DAMAGED)
            config = _object(config_bytes, where)
    return Description(
        ref=PackageRef(snapshot.name, manifest.version),
        manifest=manifest,
        manifest_bytes=data,
        config=config,
        header=header,
        revision=snapshot.commit,
        notes=notes,
    )


def _check_payload(snapshot: Snapshot, manifest: Manifest) -> Header | None:
    """Hold every file's presence, size, kind and digest against the manifest; return the header of the weights."""
    faults, header = [], None
    for entry in manifest.files:
        refuse_pickle_name(entry.path, where=snapshot.where(entry.path))
        file = snapshot.files.get(entry.path)
        if file is None:
            faults.append(f"{entry.path}: is listed in the manifest and not there")
        elif file.size != entry.size:
            faults.append(f"{entry.path}: holds {file.size} bytes, not {entry.size}")
    _raise_faults(snapshot, faults)
    for entry in manifest.files:
        if entry.path.endswith(".safetensors"):
            found = snapshot.header(entry.path)
            header = found if entry.path == WEIGHTS_FILE else header
    for entry in manifest.files:
        digest = snapshot.files[entry.path].sha256
        if digest is not None and digest != entry.digest:
            faults.append(f"{entry.path}: has the digest {digest.short}…, the manifest says {entry.digest.short}…")
    _raise_faults(snapshot, faults)
    return header


def _raise_faults(snapshot: Snapshot, faults: list[str]) -> None:
    if faults:
        raise IntegrityError(
            "the files are not what the manifest says", where=str(snapshot.name), hint=DAMAGED, details=tuple(faults)
        )


def _describe_plain(snapshot: Snapshot, version: Version | None, notes: tuple[str, ...]) -> Description:
    """Derive the manifest of a plain adapter: LFS digests from the listing, small files read and hashed."""
    if snapshot.files.get(WEIGHTS_FILE) is None and snapshot.files.get(PICKLED_WEIGHTS) is not None:
        check = CHECKS["ADP002"]
        raise InvalidFileError(
            f"has no {WEIGHTS_FILE}, only a pickle",
            where=snapshot.where(PICKLED_WEIGHTS),
            hint=check.hint,
            code=check.code,
        )
    for path in (CONFIG_FILE, WEIGHTS_FILE):
        if path not in snapshot.files:
            raise UnsatisfiedError(
                f"holds no adapter: there is neither {MANIFEST_FILE} nor {path}",
                where=f"{snapshot.name}#{snapshot.commit[:_COMMIT_DIGITS]}",
                hint=f"look at {snapshot.client.endpoint}/{snapshot.name}",
            )
    entries = tuple(sorted(_entry(snapshot, path) for path in PAYLOAD_FILES if path in snapshot.files))
    where = snapshot.where(CONFIG_FILE)
    config = _object(snapshot.read(CONFIG_FILE) or b"", where)
    frozen = freeze(config)
    assert isinstance(frozen, Mapping)
    manifest, told = derive_from(
        frozen,
        entries,
        name=snapshot.name.name,
        version=version or derived_version(snapshot.commit),
        where=where,
    )
    return Description(
        ref=PackageRef(snapshot.name, manifest.version),
        manifest=manifest,
        manifest_bytes=None,
        config=config,
        header=snapshot.header(WEIGHTS_FILE),
        revision=snapshot.commit,
        notes=(*notes, *told),
    )


def _entry(snapshot: Snapshot, path: str) -> FileEntry:
    file = snapshot.files[path]
    if file.sha256 is not None:
        return FileEntry(path=path, size=file.size, digest=file.sha256)
    data = snapshot.read(path, limit=_MAX_PLAIN_BYTES) or b""
    return FileEntry(path=path, size=len(data), digest=Digest.of(data))


def _is_same(data: bytes, file: RemoteFile) -> bool:
    """Say whether a file's bytes are those of its listing: by sha256, or by git's name of the blob."""
    if file.sha256 is not None:
        return Digest.of(data) == file.sha256
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == file.blob_id


def _manifest(data: bytes, where: str) -> Manifest:
    try:
        content = parse_json(data, where=where)
    except InvalidFileError as error:
        raise IntegrityError(f"the manifest is no JSON: {error.message}", where=where, hint=DAMAGED) from error
    return Manifest.from_data(content, where=where)


def _object(data: bytes, where: str) -> dict[str, object]:
    value = parse_json(data, where=where)
    if not isinstance(value, dict):
        raise InvalidFileError("expected a JSON object", where=where)
    return value
