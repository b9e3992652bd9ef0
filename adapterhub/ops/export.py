"""`adapt export`: what is locked, out of the store, as a folder or a tar archive for a machine without a network."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

from adapterhub.documents import write_project
from adapterhub.environment import Environment
from adapterhub.errors import IntegrityError, InvalidFileError, UnsatisfiedError, UsageError
from adapterhub.files import local_io, new_folder, sync_folder, temporary_sibling
from adapterhub.ops._bundle import MAX_MEMBERS, TAR_SUFFIX, FolderWriter, TarWriter, Writer, package_folder
from adapterhub.progress import SILENT, Progress, Task
from adapterhub.spec._decode import suggest
from adapterhub.spec.digest import Digest, FileEntry, check_relative_path
from adapterhub.spec.lockfile import LOCK_FILE, LockedPackage, Lockfile
from adapterhub.spec.manifest import MANIFEST_FILE
from adapterhub.spec.plans import Plan, Step
from adapterhub.spec.project import PROJECT_FILE, Project
from adapterhub.spec.refs import Requirement
from adapterhub.spec.stack import Stack
from adapterhub.store import Store, StoredPackage, check_same
from adapterhub.store.leases import lease

_COMPRESSED = (".gz", ".tgz", ".xz", ".bz2", ".zst", ".zip")
_DAMAGED = "adapt verify --fix"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportPlan(Plan):
    """What will be packed: the entries of the lock, where to, and what adapters.yaml of the bundle says.

    yaml: the bytes of that adapters.yaml. lock: the lock of these entries alone.
    """

    environment: Environment
    out: Path
    lock: Lockfile
    yaml: bytes

    @property
    def entries(self) -> tuple[LockedPackage, ...]:
        """The packages, by name."""
        return self.lock.entries

    @property
    def size(self) -> int:
        """The bytes of all payload files."""
        return sum(file.size for entry in self.entries for file in entry.files)

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Return where the bundle goes."""
        return (("to", str(self.out)),)

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data."""
        return {
            **Plan.to_data(self),
            "path": str(self.out),
            "packages": [str(entry.ref) for entry in self.entries],
            "bytes": self.size,
        }


def stored(entry: LockedPackage) -> StoredPackage:
    """Return a locked package as the store names it."""
    return StoredPackage(ref=entry.ref, manifest=entry.manifest, files=entry.files)


def plan_export(out: Path, words: Iterable[str] = (), *, environment: Environment) -> ExportPlan:
    """Decide what to pack: the named packages with all that they require, or without names everything that is locked.

    Raises:
        UsageError: the output is there already, or would be compressed. UnsatisfiedError: a word is not locked, or the
        store lacks a package.
    """
    _check_out(out)
    chosen = _chosen(tuple(words), environment)
    _require_stored(chosen, environment)
    lock = replace(environment.lock, entries=chosen).settled(PROJECT_FILE)
    chosen = lock.entries
    count = sum(len(entry.files) + 1 for entry in chosen) + 2
    if out.suffix == TAR_SUFFIX and count > MAX_MEMBERS:
        raise UsageError(
            f"{count} files are more than the {MAX_MEMBERS} of an archive", where=str(out), hint="name a folder instead"
        )
    steps = [
        Step(action="pack", subject=str(entry.ref), size=sum(file.size for file in entry.files)) for entry in chosen
    ]
    return ExportPlan(
        verb="export",
        environment=environment,
        out=out,
        lock=lock,
        yaml=_project_bytes(environment, chosen),
        steps=(*steps, Step(action="write", subject=str(out))),
        warnings=about_the_base(lock),
    )


def _check_out(out: Path) -> None:
    if out.name.endswith(_COMPRESSED):
        raise UsageError(
            "weights do not get smaller by compression, and adapt import takes none",
            where=str(out),
            hint="name a .tar or a folder",
        )
    if os.path.lexists(out) and not (out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
        raise UsageError("is there already, and is not overwritten", where=str(out), hint="name another file or folder")
    if out.suffix == TAR_SUFFIX and out.is_dir():
        raise UsageError("is a folder", where=str(out), hint="name another file")


def _chosen(words: tuple[str, ...], environment: Environment) -> tuple[LockedPackage, ...]:
    lock, project = environment.lock, environment.project
    if not words:
        unlocked = [str(wanted) for wanted in project.adapters.values() if lock.by_name(wanted.name) is None]
        if unlocked:
            raise UnsatisfiedError(
                f"{PROJECT_FILE} asks for what is not locked: {', '.join(unlocked)}",
                where=str(environment.folder),
                hint="adapt install",
            )
        if not lock.entries:
            raise UnsatisfiedError("nothing is locked here", where=str(environment.folder), hint="adapt install")
        return lock.entries
    named = [_named(word, environment) for word in words]
    chosen = lock.closure(entry.name for entry in named)
    # A member that is named by itself is asked for by nobody in the bundle: it travels under an alias of its own.
    taken = {entry.alias for entry in chosen if entry.alias}
    return tuple(
        replace(entry, alias=_alias(entry, taken)) if entry.alias is None and entry in named else entry
        for entry in chosen
    )


def _alias(entry: LockedPackage, taken: set[str]) -> str:
    alias, number = entry.name.default_alias, 2
    while alias in taken:
        alias, number = f"{entry.name.default_alias[:60]}-{number}", number + 1
    taken.add(alias)
    return alias


def _named(word: str, environment: Environment) -> LockedPackage:
    lock = environment.lock
    found = lock.by_alias(word) or next((e for e in lock.entries if word in (str(e.name), str(e.ref))), None)
    if found is not None:
        return found
    known = sorted({str(entry.name) for entry in lock.entries} | {entry.alias for entry in lock.entries if entry.alias})
    near = suggest(word, known)
    hint = f"did you mean {near}?" if near else f"locked: {', '.join(known[:10]) or 'nothing'}"
    raise UnsatisfiedError(f"{word} is not locked", where=str(environment.folder), hint=hint)


def _require_stored(entries: Iterable[LockedPackage], environment: Environment) -> None:
    store = Store(environment.settings.store)
    missing = [str(entry.ref) for entry in entries if store.find(entry.ref, stored(entry).identity) is None]
    if missing:
        raise UnsatisfiedError(
            f"the store lacks {len(missing)} of the packages, or has them damaged",
            where=str(store.root),
            hint="adapt sync",
            details=tuple(missing),
        )


def about_the_base(lock: Lockfile) -> tuple[str, ...]:
    """Return what a person should know about the base model that the packages are for."""
    if lock.base is None:
        return ("base models do not travel along: on the other machine, adapt base add NAME --from FOLDER",)
    name = lock.base.base.id
    return (f"the base model {name} does not travel along: on the other machine, adapt base add {name} --from FOLDER",)


def _project_bytes(environment: Environment, entries: tuple[LockedPackage, ...]) -> bytes:
    """Return adapters.yaml as the bundle has it: as it stands, or with what does not travel taken out."""
    path, project = environment.folder / PROJECT_FILE, environment.project
    wanted = {entry.name.key: entry.alias for entry in entries if entry.alias is not None}
    adapters = {alias: item for alias, item in project.adapters.items() if item.name.key in wanted}
    for entry in entries:  # locked under an alias that adapters.yaml does not have
        if entry.alias is not None and entry.name.key not in {item.name.key for item in adapters.values()}:
            adapters[entry.alias] = Requirement(entry.name)
    chosen = replace(
        project, adapters=MappingProxyType(adapters), stacks=MappingProxyType(_stacks(project, set(adapters)))
    )
    if chosen == project and path.is_file():
        with local_io(path, "read the file"):
            return path.read_bytes()
    with tempfile.TemporaryDirectory(prefix="adapterhub-") as folder, local_io(path, "read the file"):
        if path.is_file():  # its comments stay
            shutil.copyfile(path, Path(folder) / PROJECT_FILE)
        write_project(Path(folder), chosen)
        return (Path(folder) / PROJECT_FILE).read_bytes()


def _stacks(project: Project, words: set[str]) -> dict[str, Stack]:
    """Return the stacks all of whose adapters travel; one that names another of them needs that one too."""
    kept = dict(project.stacks)
    while True:
        known = {*words, *kept}
        gone = [name for name, stack in kept.items() if any(layer.word not in known for layer in stack.layers)]
        if not gone:
            return kept
        for name in gone:
            del kept[name]


def export(plan: ExportPlan, *, progress: Progress = SILENT) -> Path:
    """Write the bundle, whole or not at all; every byte is compared with its digest on the way.

    Raises:
        IntegrityError: the store's copy is damaged. LocalIOError: the disk said no.
    """
    store = Store(plan.environment.settings.store)
    with (
        lease(store, [stored(entry) for entry in plan.entries]),
        progress.task("export", total=plan.size, unit="B") as task,
    ):
        if plan.out.suffix != TAR_SUFFIX:
            with new_folder(plan.out) as folder:
                _write(plan, FolderWriter(folder), store, task)
            return plan.out
        with _new_file(plan.out) as out:
            writer = TarWriter(out, str(plan.out))
            _write(plan, writer, store, task)
            writer.close()
    return plan.out


@contextmanager
def _new_file(target: Path) -> Iterator[BinaryIO]:
    """Fill a temporary file beside `target`; it takes the target's name when the block ends well."""
    temporary = temporary_sibling(target)
    with local_io(target, "write the archive"):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(target)
            sync_folder(target.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _write(plan: ExportPlan, writer: Writer, store: Store, task: Task) -> None:
    lock = plan.lock.canonical_bytes()
    for name, data in ((LOCK_FILE, lock), (PROJECT_FILE, plan.yaml)):
        writer.add(name, io.BytesIO(data), len(data))
    for name, source in sorted(_sources(plan, store).items()):
        if isinstance(source, bytes):
            writer.add(name, io.BytesIO(source), len(source))
            continue
        path = store.blob_path(source.digest)
        with local_io(path, "read the store"), path.open("rb") as raw:
            stream = _Hashed(raw, task)
            writer.add(name, stream, source.size)  # type: ignore[arg-type]  # all that writers use is `read`
            check_same(source, stream.digest, stream.size, where=str(path), hint=_DAMAGED)


def _sources(plan: ExportPlan, store: Store) -> dict[str, bytes | FileEntry]:
    """Return what each file below registry/ is made of: a manifest's bytes, or a blob of the store."""
    found: dict[str, bytes | FileEntry] = {}
    for entry in plan.entries:
        folder = package_folder(entry)
        found |= {f"{folder}/{file.path}": file for file in entry.files}
        if entry.manifest is not None:
            data = store.manifest_bytes(entry.manifest)
            if data is None:
                raise IntegrityError(
                    "the stored manifest is missing or damaged", where=str(entry.ref), hint="adapt sync"
                )
            found[f"{folder}/{MANIFEST_FILE}"] = data
    for name in found:
        try:
            check_relative_path(name)
        except ValueError as error:  # a path that was just short enough without the package's name before it
            raise InvalidFileError(str(error), where=name, hint="export the other packages by name") from error
    return found


class _Hashed:
    """A stream that is hashed while it is read."""

    def __init__(self, raw: BinaryIO, task: Task) -> None:
        self._raw = raw
        self._task = task
        self._state = hashlib.sha256()
        self.size = 0

    @property
    def digest(self) -> Digest:
        return Digest(self._state.hexdigest())

    def read(self, size: int) -> bytes:
        data = self._raw.read(size)
        self._state.update(data)
        self.size += len(data)
        self._task.advance(len(data))
        return data
