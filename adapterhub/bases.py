"""The base models this machine knows: one JSON record each, pointing to a folder; converted models live beside them.

    bases/records/<org--name>.json   what was found when the base was added
    bases/models/<org--name>/        the folders of converted models; every other folder is referenced where it lies

A record counts once its file is there, and it is written last.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Literal, cast

from adapterhub.documents import read_json
from adapterhub.errors import AdapterHubError, IntegrityError, LocalIOError, UnsatisfiedError, UsageError
from adapterhub.files import local_io, write_atomic
from adapterhub.fingerprints import (
    CONFIG_FILE,
    differing_parts,
    fingerprint_base,
    fingerprinted_files,
    quick_fingerprints,
    read_config,
)
from adapterhub.progress import SILENT, Progress
from adapterhub.settings import Settings
from adapterhub.spec._decode import Faults, Reader
from adapterhub.spec.base_model import BaseFingerprints, BaseModelRef, check_base_id
from adapterhub.spec.digest import canonical_json, check_relative_path
from adapterhub.weights import Checkpoint, open_checkpoint
from adapterhub.weights.fingerprints import TIED_NAMES, is_buffer

RECORD_VERSION = "1.0"
Source = Literal["folder", "hub-cache", "gguf", "wheel", "dequantized"]
SOURCES: tuple[Source, ...] = ("folder", "hub-cache", "gguf", "wheel", "dequantized")
# Temporary names beside a model's folder: of files.temporary_sibling, and of the GGUF conversion.
_LEFTOVER = r"\.{}\.(?:[0-9]+-[0-9a-f]{{8}}\.tmp|[0-9a-f]{{12}}\.partial)"
_TORCH_WORDS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class BaseState(Enum):
    """What a look at a recorded folder says; CHANGED and GONE make the record useless."""

    INTACT = "intact"
    TOUCHED = "touched"
    CHANGED = "changed"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStamp:
    """What tells at a glance whether a file may have changed: its size in bytes, its time in nanoseconds."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRecord:
    """A base model of this machine.

    ref: id, revision and fingerprints. path: its Hugging Face folder. source: where it came from. dtype: of most of its
    weights, in torch's word. parameters: how many numbers it has, tied ones once. size: bytes of its weight files.
    stamps: the files that its fingerprints were taken of. notes: what a conversion restored or assumed.
    """

    ref: BaseModelRef
    path: Path
    source: Source
    dtype: str
    parameters: int
    size: int
    stamps: tuple[FileStamp, ...] = ()
    notes: tuple[str, ...] = ()

    def to_data(self) -> dict[str, object]:
        """Return plain JSON data, as `adapt base list --json` shows it."""
        return {
            **self.ref.to_data(),
            "path": str(self.path),
            "source": self.source,
            "dtype": self.dtype,
            "parameters": self.parameters,
            "bytes": self.size,
            "notes": list(self.notes),
        }


def read_base(
    folder: Path, ref: BaseModelRef, source: Source, *, notes: tuple[str, ...] = (), progress: Progress = SILENT
) -> BaseRecord:
    """Look at a base model's folder and return its record, reading every weight byte once; nothing is written.

    `ref` gives the id, the revision and what it was derived from; the rest is filled in.

    Raises:
        InvalidFileError, IntegrityError, LocalIOError: as `fingerprint_base`.
    """
    stamps = stamps_of(folder)
    config = read_config(folder)
    checkpoint = open_checkpoint(folder)
    architectures = config.get("architectures")
    model_type = config.get("model_type")
    return BaseRecord(
        ref=replace(
            ref,
            architecture=str(architectures[0]) if isinstance(architectures, list) and architectures else None,
            model_type=model_type if isinstance(model_type, str) else None,
            fingerprints=fingerprint_base(folder, progress=progress),
        ),
        path=folder,
        source=source,
        dtype=_main_dtype(checkpoint),
        parameters=count_parameters(checkpoint, config),
        size=sum((folder / name).stat().st_size for name in checkpoint.files),
        stamps=stamps,
        notes=notes,
    )


def _main_dtype(checkpoint: Checkpoint) -> str:
    sizes: dict[str, int] = {}
    for tensor in checkpoint.tensors.values():
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    word = max(sizes, key=lambda name: (sizes[name], name), default="")
    return _TORCH_WORDS.get(word, word.lower())


def count_parameters(checkpoint: Checkpoint, config: Mapping[str, object]) -> int:
    """Count a checkpoint's numbers by its headers: no buffers, and a tied weight once even where it is stored twice."""
    names = checkpoint.tensors
    copies: set[str] = set()
    if config.get("tie_word_embeddings", True):
        copies = {
            copy
            for copy, original in TIED_NAMES
            if copy in names and original in names and names[copy].shape == names[original].shape
        }
    return sum(item.elements for name, item in names.items() if name not in copies and not is_buffer(item))


def stamps_of(folder: Path) -> tuple[FileStamp, ...]:
    """Return a stamp of every file that a base's fingerprints are taken of, sorted by path.

    Raises:
        LocalIOError: a file cannot be looked at.
    """
    stamps = []
    for name in fingerprinted_files(folder):
        with local_io(folder / name, "look at the file"):
            status = (folder / name).stat()
        stamps.append(FileStamp(path=name, size=status.st_size, mtime_ns=status.st_mtime_ns))
    return tuple(stamps)


def look_at(record: BaseRecord) -> BaseState:
    """Say by file sizes and times alone whether a base's folder may have changed since it was added."""
    if not (record.path / CONFIG_FILE).is_file():
        return BaseState.GONE
    try:
        now = stamps_of(record.path)
    except AdapterHubError:
        return BaseState.CHANGED
    if now == record.stamps:
        return BaseState.INTACT
    before = {(stamp.path, stamp.size) for stamp in record.stamps}
    return BaseState.TOUCHED if {(stamp.path, stamp.size) for stamp in now} == before else BaseState.CHANGED


class MissingBaseError(UnsatisfiedError):
    """A base model is not here, and its id says that the Hub may have it.

    id, revision: what to look for there; the revision is None where any will do.
    """

    def __init__(self, message: str, *, id: str, revision: str | None, where: str | None = None) -> None:
        wanted = id if revision is None else f"{id}#{revision}"
        super().__init__(
            message,
            where=where,
            hint=f"`adapt base add {wanted}` downloads it from the Hub; `adapt base list` shows what is here",
        )
        self.id = id
        self.revision = revision


class BaseStore:
    """The records below `settings.bases`, and the only writer of that folder."""

    def __init__(self, settings: Settings) -> None:
        self.root = settings.bases

    def model_folder(self, id: str) -> Path:
        """Return where a converted model of this id lies."""
        return self.root / "models" / _key(id)

    def get(self, id: str, *, revision: str | None = None, progress: Progress = SILENT) -> BaseRecord:
        """Return a base's record after a look at its folder.

        Where files carry another time but their old sizes, everything is hashed again, once: the new times are kept.
        revision: which one to look for on the Hub, where the base is not here.

        Raises:
            UnsatisfiedError: there is no such base, or its folder is gone (MissingBaseError where the Hub may have it).
            IntegrityError: its folder changed.
        """
        record = self.read(id, revision=revision)
        state = look_at(record)
        if state is BaseState.GONE and record.source == "hub-cache" and record.ref.pinned:
            raise MissingBaseError(
                f"base model {id} is no longer in the Hub's cache",
                id=id,
                revision=record.ref.revision,
                where=str(record.path),
            )
        if state is BaseState.GONE:
            raise UnsatisfiedError(
                f"the folder of base model {id} is gone", where=str(record.path), hint=_add_again(record)
            )
        if state is not BaseState.INTACT:
            # quick first: a changed config or header is found without reading a weight
            self._require_same(record, quick_fingerprints(record.path, open_checkpoint(record.path)))
            record = self.verify(record, progress=progress)
        return record

    def verify(self, record: BaseRecord, *, progress: Progress = SILENT) -> BaseRecord:
        """Hash a base's folder anew and hold it against the record; return the record with the files' present times.

        Raises:
            IntegrityError: something differs; `details` names it. InvalidFileError, LocalIOError: it cannot be read.
        """
        stamps = stamps_of(record.path)
        self._require_same(record, fingerprint_base(record.path, progress=progress))
        fresh = replace(record, stamps=stamps)
        if fresh != record:
            try:
                with self._locked(record.ref.id):
                    self._write(fresh)
            except LocalIOError:
                return fresh  # a store that we may only read: the next look hashes again
        return fresh

    def _require_same(self, record: BaseRecord, found: BaseFingerprints) -> None:
        parts = differing_parts(record.ref.fingerprints, found)
        lost = [name for name in ("tokenizer", "chat_template") if _was(record, name) and not getattr(found, name)]
        if parts or lost:
            raise IntegrityError(
                f"base model {record.ref.id} is not what it was when it was added",
                where=str(record.path),
                details=(*(f"{name} differs" for name in parts), *(f"{name} is gone" for name in lost)),
                hint=f"adapt base remove {record.ref.id}, then {_add_again(record)}",
            )

    def read(self, id: str, *, revision: str | None = None) -> BaseRecord:
        """Return a base's record without a look at its folder; `revision` as of `get`.

        Raises:
            UnsatisfiedError: there is no such base. UsageError: that is no id. InvalidFileError: a broken record.
        """
        path = self._path(id)
        record = self._read_file(path) if path.is_file() else None
        if record is None and "/" in id:
            raise MissingBaseError(f"there is no base model {id} here", id=id, revision=revision)
        if record is None or record.ref.id != id:
            near = f"; there is {record.ref.id}" if record else ""
            raise UnsatisfiedError(
                f"there is no base model {id} here{near}",
                hint=f"adapt base add {id} --from FOLDER; `adapt base list` shows what is here",
            )
        return record

    def find(self, id: str) -> BaseRecord | None:
        """Return a base's record without a look at its folder, None where there is none."""
        path = self._path(id)
        record = self._read_file(path) if path.is_file() else None
        return record if record is not None and record.ref.id == id else None

    def list(self) -> tuple[BaseRecord, ...]:
        """Return every record, sorted by id, without a look at their folders."""
        paths = (self.root / "records").glob("*.json")
        records = (self._read_file(path) for path in paths if not path.name.startswith("."))
        return tuple(sorted(records, key=lambda record: record.ref.id))

    def add(self, record: BaseRecord) -> None:
        """Write a record, in place of one of the same id.

        Raises:
            UsageError: an id that differs in case alone is taken. LocalIOError.
        """
        with self._locked(record.ref.id):
            self._write(record)

    @contextmanager
    def adding(self, id: str) -> Iterator[Path]:
        """Hold an id while a base is being converted; yield the free folder to convert into.

        What an interrupted conversion left there is removed. When the block ends without a record that points to the
        folder, the folder goes as well.
        """
        target = self.model_folder(id)
        with self._locked(id):
            before = self.find(id)
            if before is None or before.path != target:
                shutil.rmtree(target, ignore_errors=True)
            for path in target.parent.glob(".*"):
                if re.fullmatch(_LEFTOVER.format(re.escape(target.name)), path.name):
                    shutil.rmtree(path, ignore_errors=True)
            try:
                yield target
            finally:
                after = self.find(id)
                if after is None or after.path != target:
                    shutil.rmtree(target, ignore_errors=True)

    def remove(self, id: str) -> BaseRecord:
        """Forget a base, and delete its folder if it was converted here; a referenced folder is never touched.

        Raises:
            UnsatisfiedError: there is no such base. LocalIOError.
        """
        with self._locked(id):
            record = self.read(id)
            with local_io(self._path(id), "remove the record"):
                self._path(id).unlink()
            if record.path == self.model_folder(id):
                with local_io(record.path, "remove the folder"):
                    shutil.rmtree(record.path, ignore_errors=not record.path.exists())
        return record

    def record_file(self, id: str) -> Path:
        """Return where a base's record lies, if it has one."""
        return self._path(id)

    def _path(self, id: str) -> Path:
        return self.root / "records" / f"{_key(id)}.json"

    def _read_file(self, path: Path) -> BaseRecord:
        return decode_record(read_json(path), where=str(path), root=self.root)

    def _write(self, record: BaseRecord) -> None:
        path = self._path(record.ref.id)
        twin = next((r.ref.id for r in self.list() if _key(r.ref.id) == path.stem and r.ref.id != record.ref.id), None)
        if twin is not None:
            raise UsageError(f"{record.ref.id} differs from {twin} in case alone", hint="choose another name")
        write_atomic(path, canonical_json(encode_record(record, root=self.root)))

    @contextmanager
    def _locked(self, id: str) -> Iterator[None]:
        """Keep other processes from the same id; a lock that this process holds already is entered again."""
        from filelock import FileLock

        folder = self.root / "locks"
        with local_io(folder, "create the folder"):
            folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{_key(id)}.lock", is_singleton=True):
            yield


def _key(id: str) -> str:
    """Return an id as a file name, the same for ids that a case-insensitive disk would mix up.

    Raises:
        UsageError: it is no id.
    """
    try:
        return check_base_id(id).replace("/", "--").casefold()
    except ValueError as error:
        raise UsageError(str(error), hint="`adapt base list` shows the base models that are here") from error


def _was(record: BaseRecord, name: str) -> bool:
    return getattr(record.ref.fingerprints, name) is not None


def _add_again(record: BaseRecord) -> str:
    """Return the command that brings a base back; what the Hub's cache lost, the Hub has."""
    place = str(record.path) if record.source == "folder" else "…"
    if record.source == "hub-cache":
        repository = record.path.parent.parent.name.removeprefix("models--")
        place = f"hub:{repository.replace('--', '/')}#{record.path.name}"
    if record.ref.pinned and place == f"hub:{record.ref.id}#{record.ref.revision}":
        return f"adapt base add {place.removeprefix('hub:')}"
    return f"adapt base add {record.ref.id} --from {place}"


def encode_record(record: BaseRecord, *, root: Path) -> dict[str, object]:
    """Return a record as JSON data; a path below `root` is written relative to it, so that the whole may move."""
    inside = record.path.is_relative_to(root)
    return {
        "record_version": RECORD_VERSION,
        "base_model": record.ref.to_data(),
        "path": record.path.relative_to(root).as_posix() if inside else str(record.path),
        "source": record.source,
        "dtype": record.dtype,
        "parameters": record.parameters,
        "bytes": record.size,
        "stamps": [{"path": s.path, "bytes": s.size, "mtime_ns": s.mtime_ns} for s in record.stamps],
        "notes": list(record.notes),
    }


def decode_record(data: object, *, where: str, root: Path) -> BaseRecord:
    """Build a record from JSON data.

    Raises:
        InvalidFileError: every fault found.
    """
    faults = Faults(where=where, authored=False)
    r = Reader(data, faults)
    newer = r.format_version("record_version", supported=RECORD_VERSION)
    path = r.string("path", max_length=4096)
    base = r.mapping("base_model", optional=False)
    record = BaseRecord(
        ref=BaseModelRef.read(base if base is not None else Reader({}, faults, "base_model")),
        path=root / path,  # an absolute path stays what it is
        source=cast(Source, r.string("source", choices=SOURCES)),
        dtype=r.string("dtype"),
        parameters=r.integer("parameters"),
        size=r.integer("bytes"),
        stamps=tuple(
            FileStamp(
                path=row.parse("path", check_relative_path),
                size=row.integer("bytes"),
                mtime_ns=row.integer("mtime_ns", minimum=-(2**63)),
            )
            for row in r.mappings("stamps")
        ),
        notes=r.strings("notes", ()),
    )
    r.finish_versioned(newer, RECORD_VERSION)
    faults.raise_if_any(hint=f"remove {where}, then add the base again")
    return record
