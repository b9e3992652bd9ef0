"""`adapt import`: take in what `adapt export` packed; every byte is verified, and nothing counts until all is."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from adapterhub.documents import MAX_AUTHORED_BYTES, MAX_JSON_BYTES, parse_json, parse_yaml, read_lockfile, read_project
from adapterhub.environment import Environment
from adapterhub.errors import AdapterHubError, IntegrityError, InvalidFileError, UnsatisfiedError
from adapterhub.files import write_atomic
from adapterhub.ops._bundle import Bundle, open_bundle, package_folder, read_member
from adapterhub.ops.export import about_the_base, stored
from adapterhub.package import PICKLE_SUFFIXES, payload_digest
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings
from adapterhub.spec.digest import Digest, FileEntry
from adapterhub.spec.lockfile import LOCK_FILE, LockedPackage, Lockfile
from adapterhub.spec.manifest import MANIFEST_FILE, Manifest
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.project import PROJECT_FILE, Project
from adapterhub.store import Store, StoredPackage
from adapterhub.store.leases import lease
from adapterhub.store.roots import add_root
from adapterhub.weights import read_header

_MAX_MANIFEST_BYTES = 8 << 20
_AGAIN = "have it exported and carried over again: adapt export"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """One package of a bundle: what the lock says of it, its manifest's bytes, and what the store lacks of it."""

    entry: LockedPackage
    manifest: bytes | None
    missing: tuple[FileEntry, ...] = ()
    known: bool = False

    @property
    def stored(self) -> StoredPackage:
        """The package as the store names it."""
        return stored(self.entry)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            "name": str(self.entry.name),
            "version": str(self.entry.version),
            "bytes": sum(file.size for file in self.missing),
            "known": self.known,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportPlan(Plan):
    """What will be taken in: the packages, and the files that are written because nothing lies in their place.

    folder: where those files go, None without a project. matches: that folder then asks for what the bundle holds, so
    that `adapt sync --offline --frozen` there installs it.
    """

    source: Path
    settings: Settings
    packages: tuple[Arrival, ...]
    folder: Path | None = None
    files: tuple[tuple[Path, bytes], ...] = ()
    matches: bool = False

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            **Plan.to_data(self),
            "source": str(self.source),
            "folder": None if self.folder is None else str(self.folder),
            "packages": [item.to_data() for item in self.packages],
            "written": [str(path) for path, _ in self.files],
        }


def plan_import(source: Path, *, environment: Environment, into: Path | None = None) -> ImportPlan:
    """Look a bundle through and decide what to take in.

    into: the folder that gets adapters.yaml and adapters.lock; without it the environment's, if that is a project's.
    They are written where neither lies there, or what lies there says the same; other files of a user's stay.

    Raises:
        UnsatisfiedError: there is no bundle. IntegrityError: it is malformed, or its parts contradict each other.
        InvalidFileError: a document in it breaks its format.
    """
    folder = into if into is not None else None if environment.is_user else environment.folder
    store = Store(environment.settings.store)
    with open_bundle(source) as bundle:
        lock_bytes, lock = _lock(bundle)
        yaml_bytes, project = _project(bundle)
        packages = tuple(_arrival(bundle, entry, store) for entry in lock.entries)
    files: tuple[tuple[Path, bytes], ...] = ()
    warnings: tuple[str, ...] = ()
    matches = False
    if folder is not None:
        files, matches = _to_write(folder, lock_bytes, lock, yaml_bytes, project)
        if not matches:
            warnings = (
                f"{folder} has an {PROJECT_FILE} or {LOCK_FILE} of its own, which stay: "
                "the packages go into the store alone",
            )
    return ImportPlan(
        verb="import",
        source=source,
        settings=environment.settings,
        packages=packages,
        folder=folder,
        files=files,
        matches=matches,
        steps=(*map(_step, packages), *(Step(action="write", subject=str(path)) for path, _ in files)),
        warnings=(*warnings, *about_the_base(lock)),
    )


def _step(item: Arrival) -> Step:
    if item.known:
        return Step(action="keep", subject=str(item.entry.ref), detail="in the store already")
    return Step(action="store", subject=str(item.entry.ref), size=sum(file.size for file in item.missing))


def _lock(bundle: Bundle) -> tuple[bytes, Lockfile]:
    data, where = _document(bundle, LOCK_FILE, limit=MAX_JSON_BYTES)
    lock = Lockfile.from_data(parse_json(data, where=where), where=where)
    if not lock.entries:
        raise UnsatisfiedError("holds no packages", where=bundle.where)
    return data, lock


def _project(bundle: Bundle) -> tuple[bytes, Project]:
    data, where = _document(bundle, PROJECT_FILE, limit=MAX_AUTHORED_BYTES)
    return data, Project.from_data(parse_yaml(data, where=where), where=where)


def _document(bundle: Bundle, name: str, *, limit: int) -> tuple[bytes, str]:
    data = read_member(bundle, name, limit=limit)
    if data is None:
        raise UnsatisfiedError(
            f"holds no {name}, so adapt export did not write it",
            where=bundle.where,
            hint="for a folder of packages: adapt install org/name --registry FOLDER",
        )
    return data, f"{bundle.where}: {name}"


def _arrival(bundle: Bundle, entry: LockedPackage, store: Store) -> Arrival:
    """Check what can be told of a package without reading its payload.

    Raises:
        IntegrityError: a file is missing or of another size, or manifest and lock say different things.
    """
    folder = package_folder(entry)
    where = f"{bundle.where}: {folder}"
    manifest = None
    if entry.manifest is None:
        _check_derived(entry, where)
    else:
        manifest = read_member(bundle, f"{folder}/{MANIFEST_FILE}", limit=_MAX_MANIFEST_BYTES)
        _check_manifest(entry, manifest, f"{where}/{MANIFEST_FILE}")
    for file in entry.files:
        name = f"{bundle.where}: {folder}/{file.path}"
        if file.path.endswith(PICKLE_SUFFIXES):
            raise InvalidFileError("is a pickle by its name, which no package may hold", where=name)
        size = bundle.size(f"{folder}/{file.path}")
        if size != file.size:
            found = "is missing" if size is None else f"holds {size} bytes, not {file.size}"
            raise IntegrityError(found, where=name, hint=_AGAIN)
    package = stored(entry)
    known = store.find(package.ref, package.identity) is not None
    return Arrival(entry=entry, manifest=manifest, missing=() if known else store.missing(entry.files), known=known)


def _check_derived(entry: LockedPackage, where: str) -> None:
    digest = payload_digest(entry.files).short
    if entry.version.local != f"g{digest}":
        raise IntegrityError(
            f"has no manifest, and its version is not that of its files (0.0.0+g{digest})", where=where, hint=_AGAIN
        )


def _check_manifest(entry: LockedPackage, data: bytes | None, where: str) -> None:
    if data is None or Digest.of(data) != entry.manifest:
        found = "is missing" if data is None else f"is not the one that {LOCK_FILE} names"
        raise IntegrityError(found, where=where, hint=_AGAIN)
    manifest = Manifest.from_data(parse_json(data, where=where), where=where)
    requires = tuple(item.requirement for item in manifest.requires)
    same = (manifest.version, tuple(sorted(manifest.files)), requires) == (
        entry.version,
        tuple(sorted(entry.files)),
        entry.requires,
    )
    if not same:
        raise IntegrityError(f"says other things than {LOCK_FILE} about {entry.ref}", where=where, hint=_AGAIN)


def _to_write(
    folder: Path, lock_bytes: bytes, lock: Lockfile, yaml_bytes: bytes, project: Project
) -> tuple[tuple[tuple[Path, bytes], ...], bool]:
    """Return which files to write, adapters.yaml first, and whether the folder then says what the bundle says."""
    yaml_path, lock_path = folder / PROJECT_FILE, folder / LOCK_FILE
    has_yaml, has_lock = os.path.lexists(yaml_path), os.path.lexists(lock_path)
    if (has_yaml and read_project(folder) != project) or (has_lock and read_lockfile(folder) != lock):
        return (), False
    files = []
    if not has_yaml:
        files.append((yaml_path, yaml_bytes))
    if not has_lock:
        files.append((lock_path, lock_bytes))
    return tuple(files), True


def import_bundle(plan: ImportPlan, *, progress: Progress = SILENT) -> None:
    """Do what the plan says: all payloads into the store, then what makes them count, then the project's files.

    Raises:
        IntegrityError: the bundle's bytes are not what its manifests say; no package of it counts. LocalIOError.
    """
    store = Store(plan.settings.store)
    # The lease comes before a blob is looked for: what this import needs, no sweep takes until it is done.
    with lease(store, [item.stored for item in plan.packages]):
        with open_bundle(plan.source) as bundle:
            _take_in(bundle, plan, store, progress)
        for item in plan.packages:
            if item.manifest is not None:
                store.add_manifest(item.manifest)
        for item in plan.packages:
            store.add_ref(item.stored)
        if plan.folder is not None and plan.matches:
            add_root(store, plan.folder)
            for path, data in plan.files:
                if not os.path.lexists(path):  # somebody may have written it since
                    write_atomic(path, data)
            add_root(store, plan.folder)


def _take_in(bundle: Bundle, plan: ImportPlan, store: Store, progress: Progress) -> None:
    work = [(item, store.missing(item.entry.files)) for item in plan.packages]
    total = sum(file.size for _, missing in work for file in missing)
    with progress.task("import", total=total, unit="B") as task:
        for item, missing in work:
            folder = package_folder(item.entry)
            for file in missing:
                name = f"{folder}/{file.path}"
                where = f"{bundle.where}: {name}"
                if bundle.size(name) != file.size:
                    raise IntegrityError("was changed since it was looked at", where=where, hint=_AGAIN)
                with bundle.open(name) as stream:
                    store.add_blob(stream, file, where=where, hint=_AGAIN, task=task)
            _check_weights(bundle, folder, item.entry.files, store)


def _check_weights(bundle: Bundle, folder: str, files: Iterable[FileEntry], store: Store) -> None:
    """Refuse weights that are no safetensors, whatever their name says."""
    for file in files:
        if file.path.endswith(".safetensors"):
            try:
                read_header(store.blob_path(file.digest))
            except AdapterHubError as error:
                # The blob's path would tell a person nothing: the fault is the bundle's.
                where = f"{bundle.where}: {folder}/{file.path}"
                raise IntegrityError(f"holds no weights in safetensors: {error.message}", where=where) from error
