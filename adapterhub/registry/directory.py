"""A registry that is a plain folder: on this machine, on a network drive, in a git checkout.

    <root>/<org>/<name>/<version>/
        adapter_manifest.json      the manifest, in its canonical bytes
        adapter_config.json        the payload, exactly the files that the manifest lists
        adapter_model.safetensors
        README.md                  the model card; adapter_provenance.json and loss.svg, where the package had them

A version's folder is written beside its place under a hidden name and renamed when it is whole, so a reader sees all of
it or nothing; what begins with a dot is never listed. There is no index to keep: the folders are the index, and a
version was published when its manifest was written. `<version>.yanked.json` beside a version's folder says that it is
yanked, and why. An adapter that lies in `<root>/<org>/<name>/` itself (as PEFT saved it, say) is one version too, the
one its manifest says or, for a plain PEFT folder, the derived 0.0.0+g<12 hex>. Symbolic links are followed to the root
and not below it.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from adapterhub.documents import MAX_DOCUMENT_BYTES, parse_json, read_adapter_config
from adapterhub.errors import (
    AdapterHubError,
    IntegrityError,
    InvalidFileError,
    LocalIOError,
    UnsatisfiedError,
    UsageError,
)
from adapterhub.files import local_io, new_folder, write_atomic
from adapterhub.package import Package, open_package, refuse_pickles, regular_file
from adapterhub.progress import Progress
from adapterhub.registry.base import (
    COMPANIONS,
    Description,
    Found,
    Listed,
    Published,
    Query,
    differs_in_case,
    version_taken,
)
from adapterhub.spec._decode import suggest
from adapterhub.spec.digest import FileEntry, canonical_json, check_relative_path, digest_stream
from adapterhub.spec.manifest import CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE, Manifest
from adapterhub.spec.refs import PackageName, PackageRef, check_part, parse_version
from adapterhub.store import Store, StoredPackage, check_same
from adapterhub.weights import read_header

_DAMAGED = "the registry's copy is damaged: have it published again, or choose another version"
_MAX_MARK_BYTES = 1 << 16


class DirectoryRegistry:
    """The packages below one folder; `location` is the folder as the user wrote it."""

    def __init__(self, root: Path, *, location: str) -> None:
        self._root = root
        self._location = location

    @property
    def location(self) -> str:
        """The folder as the user wrote it."""
        return self._location

    def packages(self) -> tuple[PackageName, ...]:
        """Return every package's name, sorted."""
        self._require_root()
        found = []
        for org in _folders(self._root):
            for child in _folders(org):
                name = _package_name(org.name, child.name)
                if name is not None and _holds_versions(child):
                    found.append(name)
        return tuple(sorted(found, key=lambda name: name.key))

    def versions(self, name: PackageName) -> tuple[Listed, ...]:
        """Return a package's versions, lowest first.

        Raises:
            UnsatisfiedError: there is no such package here.
        """
        self._require_root()
        folder = self._folder(name)
        found = self._versions(folder) if folder is not None else {}
        if not found:
            raise UnsatisfiedError(
                f"the registry has no package {name}", where=self._location, hint=self._nearest(name)
            )
        return tuple(_listed(text, found[text]) for text in sorted(found, key=parse_version))

    def search(self, query: Query) -> tuple[Found, ...]:
        """Return the packages that a query describes, by name; each is judged by the version that it shows."""
        found = []
        for name in self.packages():
            row = self._found(name)
            if row is not None and _answers(query, *row):
                found.append(row[0])
                if len(found) == query.limit:
                    break
        return tuple(found)

    def _found(self, name: PackageName) -> tuple[Found, Manifest] | None:
        """Return a package by its newest version that is whole; one yanked or a pre-release only for want of others."""
        listed = sorted(
            self.versions(name), key=lambda item: (item.yanked is None, not item.version.is_prerelease, item.version)
        )
        for item in reversed(listed):
            try:
                manifest = self._manifest(PackageRef(name, item.version))[1]
            except AdapterHubError:
                continue
            return _told(name, item, manifest), manifest
        return None

    def at_revision(self, name: PackageName, revision: str) -> Description:
        """Refuse: a folder has no revisions.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{name}#{revision} asks for a revision, and a folder has none",
            where=self._location,
            hint=f"name a version: {name}@X.Y.Z",
        )

    def set_yanked(self, ref: PackageRef, reason: str | None) -> bool:
        """Mark a version as yanked, with a reason, or take the mark away (None); return False if nothing changed.

        Raises:
            UnsatisfiedError: there is no such version.
        """
        folder = self._folder_of(ref)
        if folder.name != str(ref.version):
            raise UnsatisfiedError(
                "a plain adapter has no published version that could be yanked", where=str(ref), hint="adapt pack DIR"
            )
        if _yanked(folder) == reason:
            return False
        mark = _mark_of(folder)
        if reason is None:
            with local_io(mark, "take the mark away"):
                mark.unlink(missing_ok=True)
        else:
            write_atomic(mark, canonical_json({"yanked": reason}))
        return True

    def describe(self, ref: PackageRef, *, revision: str | None = None) -> Description:
        """Return what is known of a package without moving its weights.

        revision: means nothing here; a lockfile that was made elsewhere may name one.

        Raises:
            UnsatisfiedError: there is no such version. IntegrityError: the registry's copy is damaged.
            InvalidFileError: its manifest is none that can be read, or it holds what no package may hold.
        """
        del revision
        folder, manifest, data = self._manifest(ref)
        return _describe(folder, ref, manifest, data)

    def _manifest(self, ref: PackageRef) -> tuple[Path, Manifest, bytes | None]:
        """Return a version's folder, its manifest, and the manifest's bytes (None where it is derived)."""
        folder = self._folder_of(ref)
        if not _lies_in(folder, MANIFEST_FILE):
            if folder.name == str(ref.version):
                raise IntegrityError("the package has no manifest", where=str(folder), hint=_DAMAGED)
            return folder, open_package(folder).manifest, None
        with open_inside(folder, MANIFEST_FILE) as stream:
            data = stream.read(MAX_DOCUMENT_BYTES + 1)
        manifest = _read_manifest(data, folder / MANIFEST_FILE)
        if manifest.version != ref.version:
            raise IntegrityError(
                f"the manifest says version {manifest.version}", where=str(folder / MANIFEST_FILE), hint=_DAMAGED
            )
        return folder, manifest, data

    def fetch(self, description: Description, into: Store, *, progress: Progress) -> StoredPackage:
        """Bring what the store lacks of a package into it, verified against the manifest, the marker last.

        Raises:
            IntegrityError: the folder's bytes are not what the manifest says; the package does not count as stored.
        """
        folder, stored = self._folder_of(description.ref), description.stored
        missing = into.missing(stored.files)
        with progress.task(str(stored.ref), total=sum(entry.size for entry in missing), unit="B") as task:
            for entry in missing:
                with open_inside(folder, entry.path) as stream:
                    into.add_blob(stream, entry, where=str(folder / entry.path), hint=_DAMAGED, task=task)
        if description.manifest_bytes is not None:
            into.add_manifest(description.manifest_bytes)
        into.add_ref(stored)
        return stored

    def fetch_all(
        self, descriptions: Sequence[Description], into: Store, *, progress: Progress
    ) -> tuple[StoredPackage, ...]:
        """Do as `fetch` for several packages, one after the other: a disk is not faster for being asked twice at once.

        Raises:
            IntegrityError: the folder's bytes are not what a manifest says.
        """
        return tuple(self.fetch(description, into, progress=progress) for description in descriptions)

    def published(self, ref: PackageRef, manifest: Manifest) -> bool:
        """Say whether this very manifest is published under a ref; asked before anything is written.

        Raises:
            UnsatisfiedError: that version is there with other bytes, or a name that differs in case alone is taken.
        """
        self._check_case(ref.name)
        if not self._target(ref).exists():
            return False
        self._compare(ref, manifest)
        return True

    def publish(self, package: Package, name: PackageName, *, progress: Progress) -> Published:
        """Put a package into the folder under a name; the same bytes again change nothing.

        Raises:
            UnsatisfiedError: that version is there with other bytes, or a name that differs in case alone is taken.
            IntegrityError: the package's files are not what its manifest says.
        """
        ref = PackageRef(name, package.manifest.version)
        self._check_case(name)
        target = self._target(ref)
        created = not target.exists()
        if created:
            try:
                with new_folder(target) as folder:
                    _write_package(package, folder, progress)
            except LocalIOError:
                # Somebody else may have published it in the meantime; then theirs is compared like any other.
                if not target.exists():
                    raise
                created = False
        digest = package.manifest.digest
        if not created:
            self._compare(ref, package.manifest)
        for entry in package.manifest.files:
            _verify(target, entry)
        return Published(ref=ref, digest=digest, created=created, where=str(target))

    def _target(self, ref: PackageRef) -> Path:
        return self._root / ref.name.org / ref.name.name / str(ref.version)

    def _compare(self, ref: PackageRef, manifest: Manifest) -> None:
        """Refuse to publish other bytes under a version that is there."""
        there = self.describe(ref).stored.manifest
        if there != manifest.digest:
            raise version_taken(ref, where=self._location)

    def _require_root(self) -> None:
        if not self._root.is_dir():
            raise UnsatisfiedError(
                "there is no registry folder here",
                where=self._location,
                hint="check the path; `adapt publish DIR --to org/name --registry PATH` makes one",
            )

    def _folder(self, name: PackageName) -> Path | None:
        """Return a package's folder by its exact name, whatever the file system thinks of upper and lower case."""
        org = _exact_child(self._root, name.org)
        return None if org is None else _exact_child(org, name.name)

    def _folder_of(self, ref: PackageRef) -> Path:
        self._require_root()
        folder = self._folder(ref.name)
        found = self._versions(folder) if folder is not None else {}
        if str(ref.version) not in found:
            known = ", ".join(sorted(found, key=parse_version)[-10:])
            raise UnsatisfiedError(
                f"the registry has no {ref}",
                where=self._location,
                hint=f"available: {known}" if known else self._nearest(ref.name),
            )
        return found[str(ref.version)]

    def _versions(self, folder: Path) -> dict[str, Path]:
        """Return the folder of each version of a package."""
        found = {}
        if _lies_in(folder, CONFIG_FILE):
            found[str(open_package(folder).manifest.version)] = folder
        found |= {child.name: child for child in _folders(folder) if _is_version(child.name)}
        return found

    def _nearest(self, name: PackageName) -> str:
        known = {str(other).casefold(): str(other) for other in self.packages()}
        near = known.get(name.key) or suggest(str(name), known.values())
        if near is not None:
            return f"did you mean {near}?"
        return f"it has {len(known)} packages: {', '.join(sorted(known.values())[:10])}" if known else "it is empty"

    def _check_case(self, name: PackageName) -> None:
        """Refuse a name that a file system may take for one that is there."""
        try:
            check_relative_path(str(name))
        except ValueError as error:
            raise InvalidFileError(str(error), where=str(name), hint="choose another name") from error
        folder = self._root
        for part in (name.org, name.name):
            for child in _folders(folder):
                if child.name != part and child.name.casefold() == part.casefold():
                    raise differs_in_case(child.name, part, where=self._location)
            folder = folder / part


def open_inside(folder: Path, relative: str) -> BinaryIO:
    """Open a regular file below a folder without following any symbolic link on the way.

    Raises:
        InvalidFileError: a link or something else than a regular file lies there. IntegrityError: nothing does.
    """
    path = folder
    for part in check_relative_path(relative).split("/"):
        path = path / part
        if path.is_symlink():
            raise InvalidFileError("is a symbolic link, which no package may hold", where=str(path))
    try:
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise IntegrityError("a file that the manifest lists is missing", where=str(path), hint=_DAMAGED) from error
    except OSError as error:
        raise LocalIOError(f"cannot read the file: {error.strerror}", where=str(path)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidFileError("is not a regular file", where=str(path))
    return os.fdopen(descriptor, "rb")


def _folders(folder: Path) -> Iterator[Path]:
    """Walk over the real, visible folders in a folder, sorted; an absent one has none."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise LocalIOError(f"cannot read the registry: {error.strerror}", where=str(folder)) from error
    for entry in entries:
        if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield folder / entry.name


def _exact_child(folder: Path, name: str) -> Path | None:
    return next((child for child in _folders(folder) if child.name == name), None)


def _package_name(org: str, name: str) -> PackageName | None:
    try:
        return PackageName(check_part(org, "an organisation's name"), check_part(name, "a package's name"))
    except ValueError:
        return None


def _holds_versions(folder: Path) -> bool:
    return _lies_in(folder, CONFIG_FILE) or any(_is_version(child.name) for child in _folders(folder))


def _is_version(text: str) -> bool:
    try:
        parse_version(text)
    except ValueError:
        return False
    return True


def _lies_in(folder: Path, name: str) -> bool:
    return os.path.lexists(folder / name)


def _read_manifest(data: bytes, path: Path) -> Manifest:
    try:
        content = parse_json(data, where=str(path))
    except InvalidFileError as error:
        raise IntegrityError(f"the manifest is no JSON: {error.message}", where=str(path), hint=_DAMAGED) from error
    return Manifest.from_data(content, where=str(path))


def _listed(version: str, folder: Path) -> Listed:
    manifest = folder / MANIFEST_FILE
    path = manifest if _lies_in(folder, MANIFEST_FILE) else folder / CONFIG_FILE
    try:
        published = datetime.fromtimestamp(path.lstat().st_mtime, UTC).replace(microsecond=0)
    except (OSError, OverflowError, ValueError):
        published = None
    return Listed(version=parse_version(version), published=published, yanked=_yanked(folder))


def _mark_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.yanked.json")


def _yanked(folder: Path) -> str | None:
    """Return why a version is yanked; a mark that cannot be read yanks all the same."""
    mark = _mark_of(folder)
    try:
        if mark.is_symlink() or not mark.is_file():
            return None
        content = parse_json(mark.read_bytes()[:_MAX_MARK_BYTES], where=str(mark))
    except (OSError, InvalidFileError):
        return ""
    reason = content.get("yanked") if isinstance(content, dict) else None
    return reason if isinstance(reason, str) else ""


def _told(name: PackageName, listed: Listed, manifest: Manifest) -> Found:
    return Found(
        name=name,
        version=listed.version,
        summary=manifest.summary,
        base=manifest.base_model.id,
        method=manifest.method,
        task=manifest.task,
        domains=manifest.domains,
        languages=manifest.languages,
        license=manifest.license,
        updated=listed.published,
    )


def _answers(query: Query, found: Found, manifest: Manifest) -> bool:
    """Say whether every part of a query holds."""
    words = " ".join((str(found.name), found.summary, *manifest.keywords, *manifest.domains)).casefold()

    def among(wanted: str | None, known: tuple[str, ...]) -> bool:
        return wanted is None or wanted.casefold() in {item.casefold() for item in known}

    def one(wanted: str | None, known: str | None) -> bool:
        return among(wanted, () if known is None else (known,))

    return (
        all(word in words for word in (query.text or "").casefold().split())
        and among(query.domain, found.domains)
        and among(query.language, found.languages)
        and one(query.base, found.base)
        and one(query.task, found.task)
        and one(query.method, found.method)
    )


def _describe(folder: Path, ref: PackageRef, manifest: Manifest, data: bytes | None) -> Description:
    """Look at sizes, kinds and headers of the payload; only the config is hashed, since it is read right away."""
    header = None
    refuse_pickles(folder, [entry.path for entry in manifest.files])
    for entry in manifest.files:
        path = folder / entry.path
        with open_inside(folder, entry.path) as stream:
            size = os.fstat(stream.fileno()).st_size
        if size != entry.size:
            raise IntegrityError(f"holds {size} bytes, not {entry.size}", where=str(path), hint=_DAMAGED)
        if entry.path.endswith(".safetensors"):
            found = read_header(path)
            header = found if entry.path == WEIGHTS_FILE else header
    config: dict[str, object] = {}
    for entry in manifest.files:
        if entry.path == CONFIG_FILE:
            _verify(folder, entry)
            config = read_adapter_config(folder)
    return Description(ref=ref, manifest=manifest, manifest_bytes=data, config=config, header=header)


def _write_package(package: Package, folder: Path, progress: Progress) -> None:
    """Copy payload, companions and manifest, and check what was copied against the manifest."""
    total = sum(entry.size for entry in package.manifest.files)
    with progress.task("publish", total=total, unit="B") as task:
        for entry in package.manifest.files:
            target = folder / entry.path
            with local_io(target, "publish the file"):
                target.parent.mkdir(parents=True, exist_ok=True)
                with regular_file(package.path, entry.path).open("rb") as source, target.open("xb") as out:
                    shutil.copyfileobj(source, out, 1 << 20)
            _verify(folder, entry, where=str(package.path / entry.path), hint="build or pack the package again")
            task.advance(entry.size)
    for name in COMPANIONS:
        if _lies_in(package.path, name):
            with regular_file(package.path, name).open("rb") as source, (folder / name).open("xb") as out:
                shutil.copyfileobj(source, out)
    write_atomic(folder / MANIFEST_FILE, package.manifest.canonical_bytes())


def _verify(folder: Path, entry: FileEntry, *, where: str | None = None, hint: str = _DAMAGED) -> None:
    path = folder / entry.path
    try:
        with open_inside(folder, entry.path) as stream:
            digest, size = digest_stream(stream)
    except OSError as error:
        raise LocalIOError(f"cannot read the file: {error.strerror}", where=str(path)) from error
    check_same(entry, digest, size, where=where or str(path), hint=hint)
